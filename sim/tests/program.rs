//! The program `mooseng-sim` as a person uses it: exit codes, resumed sweeps, minimised failures that replay,
//! the bank, and the page of a timeline, in a browser if there is one.
#![expect(clippy::disallowed_methods, reason = "the test reads the files that the program writes")]

use mooseng_sim::harness::Recipe;
use mooseng_sim::harness::campaign::State;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory of its own for each test, gone afterwards.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("mooseng-sim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Dir(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Exit code and output.
fn program(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mooseng-sim"))
        .args(args)
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("an exit code"), text)
}

fn state(dir: &Dir) -> State {
    let text = std::fs::read_to_string(dir.0.join("journal/state.json")).expect("a state");
    serde_json::from_str(&text).expect("a state")
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let (code, text) = program(&["run", "journal", "--seed", "2"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("starts, incarnation 1") && text.contains("hash"), "{text}");
    let (code, text) = program(&["run", "journal", "--seed", "1", "--bug", "NOSYNC", "--quiet"]);
    assert_eq!(code, 12, "{text}");
    assert!(!text.contains("starts, incarnation 1") && text.contains("Correctness"), "{text}");
    assert_eq!(program(&["run", "nothing"]).0, 2);
    assert_eq!(program(&["sweep", "journal", "--seeds", "3..3", "--state", "/nowhere"]).0, 2);
}

#[test]
fn a_sweep_goes_on_where_it_ended() {
    let dir = Dir::new("sweep");
    let sweep = |seeds: &str| {
        let args = ["sweep", "journal", "--seeds", seeds, "--state", &dir.0.display().to_string()];
        let (code, text) = program(&args);
        // So few seeds may lack a kind of fault; nothing may fail.
        assert!(code == 0 || code == 1, "{code}: {text}");
        state(&dir)
    };
    let first = sweep("1..5");
    assert_eq!(first.done, std::slice::from_ref(&(1..5)));
    assert!(first.simulated_ms > 0 && first.counts["operations"].seeds == 4, "{first:?}");
    assert_eq!(sweep("1..5"), first, "nothing is run twice");
    let more = sweep("3..8");
    assert_eq!((more.done.as_slice(), more.seeds()), (std::slice::from_ref(&(1..8)), 7));
    assert!(more.counts["operations"].sum > first.counts["operations"].sum);
}

#[test]
fn a_failure_is_minimised_and_replays() {
    let dir = Dir::new("minimise");
    let file = dir.file("small.json");
    let which = ["journal", "--seed", "1", "--bug", "NOSYNC", "--runs", "60", "-o", &file];
    let (code, text) = program(&[&["minimise"], &which[..]].concat());
    assert_eq!(code, 12, "{text}");
    assert!(text.contains(&format!("mooseng-sim replay {file}")), "{text}");
    let recipe = Recipe::load(Path::new(&file)).expect("a recipe");
    // It needs no fault: what was not synced is missing from the durable image.
    let left = recipe.job.plan.as_ref().expect("a plan").size();
    assert_eq!((left.0, left.1), (0, 0), "strikes and frame faults are left: {text}");
    let (code, text) = program(&["replay", &file, "--times", "4"]);
    assert_eq!(code, 12, "{text}");
    assert!(text.contains("4 runs, all as the file says"), "{text}");
}

/// A failure that needs a fault and operations keeps them, and loses most of the others.
#[test]
fn a_minimised_failure_keeps_what_it_needs() {
    let dir = Dir::new("needs");
    let (whole, small) = (dir.file("whole.json"), dir.file("small.json"));
    let which = ["raft_chaos", "--seed", "4", "--bug", "M39"];
    let run = [&["run"], &which[..], &["--quiet", "--save", &whole]].concat();
    let (code, text) = program(&run);
    assert_eq!(code, 12, "{text}");
    let minimise = [&["minimise"], &which[..], &["--runs", "60", "-o", &small]].concat();
    let (code, text) = program(&minimise);
    assert_eq!(code, 12, "{text}");
    let load = |file: &str| Recipe::load(Path::new(file)).expect("a recipe");
    let (whole, small) = (load(&whole), load(&small));
    let oracle = |recipe: &Recipe| recipe.failure.clone().map(|failure| failure.oracle);
    assert_eq!((oracle(&whole), oracle(&small)), (Some("O1".to_owned()), Some("O1".to_owned())));
    let size = |recipe: &Recipe| recipe.job.plan.as_ref().expect("a plan").size();
    let ((strikes, frames, operations), before) = (size(&small), size(&whole));
    assert!(strikes < before.0 && frames <= before.1 && operations < before.2, "{text}");
    // A retry: an answer that did not come, for a lost frame or a dead machine, and the operation.
    assert!(strikes + frames > 0 && operations > 0, "{text}");
}

/// What was drawn, written down and carried out, is the same run.
#[test]
fn a_whole_plan_is_the_same_run() {
    let dir = Dir::new("plan");
    for (scenario, seed) in [("raft_chaos", "3"), ("cluster_chaos", "5"), ("journal", "4")] {
        let file = dir.file("drawn.json");
        let args = ["run", scenario, "--seed", seed, "--quiet", "--save", &file];
        let (code, text) = program(&args);
        assert_eq!(code, 0, "{text}");
        let plan = Recipe::load(Path::new(&file)).expect("a recipe").job.plan.expect("a plan");
        assert!(plan.size().2 > 10, "operations were counted: {:?}", plan.size());
        let (code, text) = program(&["replay", &file, "--quiet"]);
        assert_eq!(code, 0, "{text}");
        assert!(!text.contains("the file says"), "{scenario} {seed}: {text}");
    }
}

#[test]
fn the_bank_prints_and_writes_its_table_and_goes_on_where_it_ended() {
    let dir = Dir::new("bank");
    let (file, state) = (dir.file("BANK.md"), dir.file("state.json"));
    let which = ["bank", "--quick", "--only", "NOSYNC", "--state", &state];
    let (code, first) = program(&[&which[..], &["--write", &file]].concat());
    assert_eq!(code, 0, "{first}");
    let page = std::fs::read_to_string(&file).expect("a page");
    assert!(page.contains("| NOSYNC |") && page.contains("1/1"), "{page}");
    let (code, again) = program(&[&which[..], &["--no-asserts"]].concat());
    let hunts = |text: &str| text.matches("NOSYNC in journal: caught by").count();
    assert_eq!((code, hunts(&first), hunts(&again)), (0, 1, 1), "nothing is done twice: {again}");
    assert!(again.contains("| 1/1 |"), "{again}");
    std::fs::write(&state, "{").expect("written");
    let (code, text) = program(&which);
    assert!(code == 2 && text.contains("state.json"), "{code}: {text}");
    assert_eq!(program(&["bank", "--only", "M99"]).0, 2);
}

/// A class that is left out does not strike, and the others still do.
#[test]
fn a_class_of_faults_is_left_out() {
    let run = |more: &[&str]| program(&[&["run", "journal", "--seed", "1"], more].concat()).1;
    let (all, fewer) = (run(&[]), run(&["--without", "power-loss,blackout"]));
    assert!(all.contains("loses power") && !all.contains("\"off\""), "{all}");
    assert!(!fewer.contains("loses power") && fewer.contains("\"off\":[\"power-loss\""), "{fewer}");
    assert!(
        fewer.contains("fault: one-way cut") && !fewer.contains("fault: power loss"),
        "{fewer}"
    );
    assert_eq!(program(&["run", "journal", "--without", "thunder"]).0, 2);
}

#[test]
fn the_worth_of_classes_is_printed_and_goes_on_where_it_ended() {
    let dir = Dir::new("classes");
    let (page, state) = (dir.file("CLASSES.md"), dir.file("state.json"));
    let which = ["classes", "--only", "M22", "--scenario", "store_model", "--seeds", "3"];
    let args = [&which[..], &["--state", &state, "--write", &page]].concat();
    let (code, first) = program(&args);
    assert_eq!(code, 0, "{first}");
    let text = std::fs::read_to_string(&page).expect("a page");
    assert!(text.contains("| eio-on-fsync | M22 in `store_model` |"), "{text}");
    assert!(text.contains("- rot: struck in no run."), "{text}");
    let (_, again) = program(&args);
    assert!(first.contains("M22 in store_model: needs eio-on-fsync"), "{first}");
    assert!(!again.contains("M22 in store_model: needs"), "nothing is done twice: {again}");
    assert_eq!(program(&["classes", "--only", "M99"]).0, 2);
}

/// The run as a page; what it must hold.
fn timeline(dir: &Dir) -> String {
    let file = dir.file("timeline.html");
    let which = ["timeline", "raft_chaos", "--seed", "1", "--bug", "M39", "-o", &file];
    let (code, text) = program(&which);
    assert_eq!(code, 12, "{text}");
    std::fs::read_to_string(&file).expect("a page")
}

#[test]
fn a_timeline_shows_machines_and_the_broken_promise() {
    let page = timeline(&Dir::new("timeline"));
    for part in ["\"node\":\"m1\"", "\"kind\":\"operation\"", "\"kind\":\"broken\"", "<canvas"] {
        assert!(page.contains(part), "{part}");
    }
}

/// Uses the page's own controls and writes down what came of it.
const USER: &str = r#"<pre id="told"></pre><script>
const told = {}, lines = () => [...$("log").tBodies[0].rows].map((row) => row.textContent);
const say = (name) => { told[name] = { span: $("span").textContent, lines: lines().length, broken: lines().filter((l) => l.includes("broken")).length }; };
const type = (text) => { $("filter").value = text; $("filter").oninput(); };
say("all");
type("m1 leads"); say("words"); told.strangers = lines().filter((l) => !(l.includes("m1") && l.includes("leads"))).length;
type("/^m[12] .*(leads|follows)/"); say("pattern");
type(""); say("unfiltered");
$("broken").click(); say("broken");
$("in").click(); say("in"); $("out").click(); $("out").click(); say("out");
$("all").click(); say("whole");
const clientX = canvas.getBoundingClientRect().left + canvas.clientWidth / 2;
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, clientX, cancelable: true })); say("wheel");
const pixels = paint.getImageData(0, 0, canvas.width, canvas.height).data, colours = new Set();
for (let at = 0; at < pixels.length; at += 4) colours.add(pixels[at] << 16 | pixels[at + 1] << 8 | pixels[at + 2]);
told.colours = colours.size;
$("told").textContent = JSON.stringify(told);
</script></body>"#;

/// `MOOSENG_BROWSER`, or what is found on the path.
fn browser() -> Option<PathBuf> {
    if let Ok(named) = std::env::var("MOOSENG_BROWSER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut all = names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    all.find(|file| file.is_file())
}

fn browse(dir: &Dir, browser: &Path, args: &[&str]) -> String {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800"])
        .arg(format!("--user-data-dir={}", dir.file("profile")))
        .args(args)
        .output()
        .expect("the browser starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The picture of a page, which is a PNG of the window's size.
fn picture(dir: &Dir, browser: &Path, address: &str) -> Vec<u8> {
    let file = dir.file("picture.png");
    browse(dir, browser, &[&format!("--screenshot={file}"), address]);
    let bytes = std::fs::read(&file).expect("a picture");
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes[12..16] == *b"IHDR", "a PNG");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
    assert_eq!((number(16), number(20)), (1200, 800));
    assert!(bytes.ends_with(b"IEND\xaeB`\x82"), "a whole PNG");
    bytes
}

/// With a browser at hand the page is opened, filtered, zoomed and looked at.
#[test]
fn a_timeline_works_in_a_browser() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no browser on the path, and MOOSENG_BROWSER is not set");
        return;
    };
    let dir = Dir::new("browser");
    let page = timeline(&dir);
    let dom =
        browse(&dir, &browser, &["--dump-dom", &format!("file://{}", dir.file("timeline.html"))]);
    assert!(dom.contains("raft_chaos, seed 1, planted bug M39</title>"), "the script ran");
    assert!(dom.matches("<tr").count() > 20, "the log is filled");
    assert!(dom.contains("class=\"broken\""), "the broken promise is marked");
    let used = dir.file("used.html");
    std::fs::write(&used, page.replacen("</body>", USER, 1)).expect("a page");
    let dom = browse(&dir, &browser, &["--dump-dom", &format!("file://{used}")]);
    let told = dom.split_once("<pre id=\"told\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let told: serde_json::Value = serde_json::from_str(told.expect("told").0).expect("told");
    controls_work(&told);
    let blank = picture(&dir, &browser, "about:blank");
    let shown = picture(&dir, &browser, &format!("file://{}#broken", dir.file("timeline.html")));
    assert!(shown.len() > 5 * blank.len(), "{} bytes, blank: {}", shown.len(), blank.len());
}

fn controls_work(told: &serde_json::Value) {
    let lines = |step: &str| told[step]["lines"].as_u64().expect("a number");
    let width = |step: &str| {
        let span = told[step]["span"].as_str().expect("a span").replace(" s", "");
        let (from, to) = span.split_once(" to ").expect("two times");
        to.parse::<f64>().expect("a time") - from.parse::<f64>().expect("a time")
    };
    assert!((1..lines("all")).contains(&lines("words")), "{told}");
    assert_eq!(told["strangers"], 0, "{told}");
    assert!((1..lines("all")).contains(&lines("pattern")), "{told}");
    assert_eq!(lines("unfiltered"), lines("all"), "{told}");
    assert!(width("broken") < width("all") && width("in") < width("broken"), "{told}");
    assert_eq!(told["in"]["broken"], 1, "{told}");
    assert!(width("out") > width("broken") && width("wheel") < width("whole"), "{told}");
    assert_eq!(told["whole"], told["all"], "{told}");
    assert!(told["colours"].as_u64().expect("a number") > 10, "{told}");
}
