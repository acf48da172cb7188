//! The program `mooseng-sim` as a person uses it: exit codes, resumed sweeps, minimised failures that replay,
//! the bank, and the page of a timeline.
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
fn the_bank_prints_and_writes_its_table() {
    let dir = Dir::new("bank");
    let file = dir.file("BANK.md");
    let (code, text) = program(&["bank", "--quick", "--only", "NOSYNC", "--write", &file]);
    assert_eq!(code, 0, "{text}");
    let page = std::fs::read_to_string(&file).expect("a page");
    assert!(page.contains("| NOSYNC |") && page.contains("1/1"), "{page}");
    assert_eq!(program(&["bank", "--only", "M99"]).0, 2);
}

/// A class that is left out does not strike, and the others still do.
#[test]
fn a_class_of_faults_is_left_out() {
    let run = |more: &[&str]| program(&[&["run", "journal", "--seed", "4"], more].concat()).1;
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

/// With `MOOSENG_BROWSER=chromium` the page is opened as well, and what its script made of it is read.
#[test]
fn a_timeline_shows_machines_and_the_broken_promise() {
    let dir = Dir::new("timeline");
    let file = dir.file("timeline.html");
    let which = ["timeline", "raft_chaos", "--seed", "1", "--bug", "M39", "-o", &file];
    let (code, text) = program(&which);
    assert_eq!(code, 12, "{text}");
    let page = std::fs::read_to_string(&file).expect("a page");
    for part in ["\"node\":\"m1\"", "\"kind\":\"operation\"", "\"kind\":\"broken\"", "<canvas"] {
        assert!(page.contains(part), "{part}");
    }
    let Ok(browser) = std::env::var("MOOSENG_BROWSER") else {
        println!("MOOSENG_BROWSER is not set: the page was not opened");
        return;
    };
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("file://{file}"))
        .output()
        .expect("the browser starts");
    let dom = String::from_utf8_lossy(&output.stdout);
    assert!(dom.contains("raft_chaos, seed 1, planted bug M39</title>"), "the script ran");
    assert!(dom.matches("<tr").count() > 20, "the log is filled");
    assert!(dom.contains("class=\"broken\""), "the broken promise is marked");
}
