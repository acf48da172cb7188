//! Configuration: a flag wins over the environment, the environment over the file, the file over defaults.
//!
//! The file is TOML with the sections below; `MOOSENG_SECTION__KEY` sets a key by the environment (lists
//! are separated by commas). Variables without `__`, such as the simulator's `MOOSENG_SEED` and
//! `MOOSENG_SEEDS`, are not configuration.

use crate::fail::Fail;
use crate::limits_config::LimitsConfig;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Read when no file is named and it exists.
pub const DEFAULT_FILE: &str = "/etc/mooseng/mooseng.toml";
/// Where a master listens for clients, chunkservers and its peers.
pub const MASTER_LISTEN: &str = "127.0.0.1:9420";
/// Where a chunkserver listens.
pub const CHUNKSERVER_LISTEN: &str = "127.0.0.1:9422";

const LISTS: [&str; 3] = ["masters", "data_dirs", "labels"];

/// Everything a configuration may say.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[node]`
    pub node: Node,
    /// `[log]`
    pub log: Log,
    /// `[limits]`
    pub limits: LimitsConfig,
}

/// `[cluster]`: which cluster this is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// 32 hexadecimal digits; refuses any other cluster.
    pub id: Option<String>,
    /// host:port of the masters.
    pub masters: Vec<String>,
}

/// `[node]`: this daemon.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// host:port to listen on.
    pub listen: Option<String>,
    /// host:port that others reach this node at; the listen address if absent.
    pub advertise: Option<String>,
    /// host:port of a master's gRPC service; the listen port plus one if absent.
    pub grpc: Option<String>,
    /// host:port that answers with counters in Prometheus text; off if absent.
    pub metrics: Option<String>,
    /// A master's directory.
    pub data_dir: Option<PathBuf>,
    /// A chunkserver's directories, one per disk.
    pub data_dirs: Vec<PathBuf>,
    /// Where a chunkserver stands, e.g. `rack=r1`.
    pub labels: Vec<String>,
}

/// `[log]`: what is written to standard error.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level, or a list such as `info,openraft=debug`.
    pub level: Option<String>,
    /// Where to write instead of standard error, which a mount in the background does not have.
    pub file: Option<PathBuf>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads the file (the default one may be absent, a named one may not) and the process's environment.
    pub fn load(file: Option<&Path>) -> Result<Config, Fail> {
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        match file {
            Some(path) => Config::read(Some((path, read_text(path)?)), vars),
            None => {
                let path = Path::new(DEFAULT_FILE);
                // One that is there and can not be read is not taken for none.
                let absent = std::fs::metadata(path)
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
                let text = if absent { None } else { Some(read_text(path)?) };
                Config::read(text.map(|text| (path, text)), vars)
            }
        }
    }

    fn read(
        file: Option<(&Path, String)>,
        vars: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Fail> {
        let mut merged = toml::Table::new();
        if let Some((path, text)) = file {
            let source = path.display().to_string();
            let table = parse_file(&source, &text)?;
            decode(&source, table.clone())?;
            merged = table;
        }
        for (name, value) in vars {
            let Some((section, key)) = split_variable(&name) else { continue };
            let source = format!("environment variable {name}");
            let value = variable_value(&key, &value);
            let single: toml::Table = [(key.clone(), value)].into_iter().collect();
            let alone =
                [(section.clone(), toml::Value::Table(single.clone()))].into_iter().collect();
            decode(&source, alone)?;
            let slot = merged.entry(section).or_insert_with(|| toml::Table::new().into());
            if let Some(table) = slot.as_table_mut() {
                table.extend(single);
            }
        }
        decode("configuration", merged)
    }

    /// The masters: the flag's if it names any, else the configured ones.
    pub fn masters(&self, flag: &[String]) -> Vec<String> {
        let list = if flag.is_empty() { &self.cluster.masters } else { flag };
        list.iter()
            .flat_map(|item| item.split(','))
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect()
    }

    /// The configured cluster id.
    pub fn cluster_id(&self) -> Result<Option<mooseng::ids::Uuid>, Fail> {
        let Some(text) = &self.cluster.id else { return Ok(None) };
        let bad = || Fail::usage(format!("[cluster] id `{text}` is not 32 hexadecimal digits"));
        mooseng::ids::Uuid::parse(text).map(Some).ok_or_else(bad)
    }
}

/// Where a master's gRPC service is unless said otherwise: at the port after its own.
pub fn grpc_of(master: &str) -> Result<String, Fail> {
    let parts =
        master.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    match parts {
        Some((host, port)) if port < u16::MAX => Ok(format!("{host}:{}", port + 1)),
        _ => Err(Fail::usage(format!("`{master}` is not an address like 10.0.0.1:9420"))),
    }
}

fn read_text(path: &Path) -> Result<String, Fail> {
    std::fs::read_to_string(path).map_err(|e| Fail::usage(format!("{}: {e}", path.display())))
}

fn parse_file(source: &str, text: &str) -> Result<toml::Table, Fail> {
    text.parse::<toml::Table>().map_err(|error| {
        let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
        let line = line.map(|n| format!(":{n}")).unwrap_or_default();
        Fail::usage(format!("{source}{line}: {}", error.message()))
    })
}

fn decode(source: &str, table: toml::Table) -> Result<Config, Fail> {
    let mut config = Config::default();
    for (section, value) in table {
        match section.as_str() {
            "cluster" => config.cluster = part(source, &section, value)?,
            "node" => config.node = part(source, &section, value)?,
            "log" => config.log = part(source, &section, value)?,
            "limits" => config.limits = part(source, &section, value)?,
            other => {
                let known = "known sections: cluster, node, log, limits";
                return Err(Fail::usage(format!("{source}: unknown key `{other}` ({known})")));
            }
        }
    }
    Ok(config)
}

fn part<'de, T: Deserialize<'de>>(
    source: &str,
    section: &str,
    value: toml::Value,
) -> Result<T, Fail> {
    value.try_into().map_err(|error: toml::de::Error| {
        let message = error.message().replacen("unknown field", "unknown key", 1);
        Fail::usage(format!("{source}: [{section}] {message}"))
    })
}

/// `MOOSENG_NODE__DATA_DIR` names `data_dir` in `[node]`.
fn split_variable(name: &str) -> Option<(String, String)> {
    let (section, key) = name.strip_prefix("MOOSENG_")?.split_once("__")?;
    Some((section.to_lowercase(), key.to_lowercase()))
}

fn variable_value(key: &str, text: &str) -> toml::Value {
    if LISTS.contains(&key) {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        return toml::Value::Array(items.map(|item| item.to_owned().into()).collect());
    }
    match text.parse::<i64>() {
        Ok(number) => number.into(),
        Err(_) => text.to_owned().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, vars: &[(&str, &str)]) -> Result<Config, Fail> {
        let vars = vars.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Config::read(Some((Path::new("/x/m.toml"), file.to_owned())), vars)
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = read(
            "[node]\nlisten = \"a:1\"\nadvertise = \"b:1\"\n[limits]\nserver_dead_ms = 5",
            &[
                ("MOOSENG_NODE__LISTEN", "c:2"),
                ("MOOSENG_CLUSTER__MASTERS", "x:1, y:2"),
                ("MOOSENG_LIMITS__SERVER_DEAD_MS", "7000"),
                ("MOOSENG_SEED", "5"),
                ("MOOSENG_SEEDS", "5"),
            ],
        )
        .unwrap();
        assert_eq!(config.node.listen.as_deref(), Some("c:2"));
        assert_eq!(config.node.advertise.as_deref(), Some("b:1"));
        assert_eq!(config.masters(&[]), ["x:1", "y:2"]);
        assert_eq!(config.masters(&["z:3,w:4".into()]), ["z:3", "w:4"]);
        let mut limits = mooseng::limits::Limits::production();
        config.limits.apply(&mut limits).unwrap();
        assert_eq!(limits.server_dead.as_millis(), 7000);
    }

    #[test]
    fn an_unknown_key_is_one_line_that_names_file_and_key() {
        for (text, key) in [
            ("[node]\nlisen = \"a:1\"", "lisen"),
            ("[nodes]\nlisten = \"a:1\"", "nodes"),
            ("[limits]\nheartbeat = 5", "heartbeat"),
        ] {
            let fail = read(text, &[]).unwrap_err();
            assert_eq!(fail.code(), 2);
            let line = fail.to_string();
            assert!(line.starts_with("/x/m.toml: "), "{line}");
            assert!(line.contains(&format!("unknown key `{key}`")), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
        let line = read("", &[("MOOSENG_NODE__LISEN", "x")]).unwrap_err().to_string();
        assert!(line.starts_with("environment variable MOOSENG_NODE__LISEN: "), "{line}");
    }

    #[test]
    fn grpc_is_one_port_further() {
        assert_eq!(grpc_of("h:9420").unwrap(), "h:9421");
        assert_eq!(grpc_of("[::1]:9420").unwrap(), "[::1]:9421");
        for bad in ["h", "h:", "h:x", "h:65535"] {
            assert_eq!(grpc_of(bad).unwrap_err().code(), 2);
        }
    }

    #[test]
    fn bad_values_and_bad_syntax_are_one_line() {
        let line = read("[node]\nlisten = 5", &[]).unwrap_err().to_string();
        assert!(line.contains("[node]") && line.contains("integer"), "{line}");
        let line = read("[node\nlisten", &[]).unwrap_err().to_string();
        assert!(line.starts_with("/x/m.toml:1: "), "{line}");
        assert!(read("[cluster]\nid = \"zz\"", &[]).unwrap().cluster_id().is_err());
    }
}
