//! Tests of the configuration: owns tables of layers and of faults; knows no broker.

use std::fs;

use super::*;

const MACHINE: fn() -> Machine = || Machine {
    cpus: vec![0, 1, 2, 3],
    cpu_quota: None,
    memory_bytes: 16 << 30,
    disk_bytes: 100 << 30,
    log_is_terminal: false,
};

fn of_file(text: &str) -> Result<Config, ConfigError> {
    let file = Some(FileText { path: "coulee.toml", text });
    Config::load(&Layers { file, ..Layers::default() }, &MACHINE())
}

fn of_set(text: &str) -> Result<Config, ConfigError> {
    Config::load(&Layers { sets: vec![text], ..Layers::default() }, &MACHINE())
}

fn value(config: &Config, key: Key) -> String {
    config.entries().into_iter().find(|entry| entry.key == key).map(|entry| entry.value).expect("every key has one")
}

#[test]
fn defaults_follow_the_machine() {
    let load = |machine: &Machine| Config::load(&Layers::default(), machine).unwrap();
    let config = load(&MACHINE());
    assert_eq!((config.shards, config.cpus.as_slice()), (4, &[0, 1, 2, 3][..]));
    assert_eq!((config.memory_shard_bytes, config.pool_bytes), (1 << 30, 1 << 30));
    assert_eq!(config.native_listen.to_string(), "127.0.0.1:7700");
    assert_eq!((config.log_format, config.connections_max), (LogFormat::Json, 20_000));
    assert!(config.entries().iter().all(|entry| entry.origin == Origin::Default && entry.detail.is_empty()));

    let quota = load(&Machine { cpu_quota: Some(2), log_is_terminal: true, ..MACHINE() });
    assert_eq!((quota.shards, quota.cpus.as_slice(), quota.log_format), (2, &[0, 1][..], LogFormat::Pretty));
    let small = load(&Machine { memory_bytes: 64 << 20, disk_bytes: 4 << 30, ..MACHINE() });
    assert_eq!(small.memory_shard_bytes, MEMORY_SHARD_BYTES_MIN);
    assert_eq!(small.pool_bytes, 102 << 20, "a tenth of 4 GiB for four shards, in whole MiB");
}

#[test]
fn each_layer_goes_over_the_one_before() {
    let file = FileText { path: "coulee.toml", text: "shards = 1\n\n[native]\nlisten = \"127.0.0.1:1\"\n" };
    let mut layers = Layers { file: Some(file), ..Layers::default() };
    let expect = |layers: &Layers<'_>, listen: &str, origin: Origin, detail: &str| {
        let config = Config::load(layers, &MACHINE()).unwrap();
        let entry = config.entries().into_iter().find(|entry| entry.key == Key::NativeListen).unwrap();
        assert_eq!((entry.value.as_str(), entry.origin, entry.detail.as_str()), (listen, origin, detail));
        assert_eq!(config.shards, 1, "other keys stay as they were");
    };
    expect(&layers, "127.0.0.1:1", Origin::File, "coulee.toml:4");
    layers.environment = vec![("COULEE_NATIVE__LISTEN", "127.0.0.1:2"), ("PATH", "/bin")];
    expect(&layers, "127.0.0.1:2", Origin::Environment, "COULEE_NATIVE__LISTEN");
    layers.flags = vec![Flag { key: Key::NativeListen, value: "127.0.0.1:3" }];
    expect(&layers, "127.0.0.1:3", Origin::Flag, "--listen");
    layers.sets = vec!["native.listen = 127.0.0.1:4"];
    expect(&layers, "127.0.0.1:4", Origin::Flag, "--set");
}

#[test]
fn every_key_takes_its_value_from_every_layer() {
    let values = [
        (Key::Cpus, "1,3"),
        (Key::DataDir, "/var/lib/coulee"),
        (Key::GroupInitialRebalanceDelay, "0s"),
        (Key::LimitsConnections, "7"),
        (Key::LogFormat, "pretty"),
        (Key::LogLevel, "debug"),
        (Key::MemoryShard, "256MiB"),
        (Key::NativeListen, "[::1]:0"),
        (Key::OffsetsRetention, "2d"),
        (Key::PoolBytes, "0B"),
        (Key::Shards, "3"),
        (Key::ShutdownGrace, "5s"),
    ];
    assert_eq!(values.map(|(key, _)| key), KEYS.map(|facts| facts.key));
    for (key, text) in values {
        let variable = key.variable();
        let (file, set) = (format!("{key} = \"{text}\""), format!("{key}={text}"));
        let environment = Layers { environment: vec![(&variable, text)], ..Layers::default() };
        let flags = Layers { flags: vec![Flag { key, value: text }], ..Layers::default() };
        let flags = [&environment, &flags].map(|layers| Config::load(layers, &MACHINE()));
        for config in flags.into_iter().chain([of_file(&file), of_set(&set)]) {
            assert_eq!(value(&config.unwrap(), key), text, "{key}");
        }
    }
}

#[test]
fn files_may_write_numbers_and_lists_as_toml_has_them() {
    let config = of_file("shards = 2\ncpus = [0, 3]\nlimits.connections = 1_000\n[pool]\nbytes = 4096\n").unwrap();
    assert_eq!((config.shards, config.cpus.as_slice()), (2, &[0, 3][..]));
    assert_eq!((config.connections_max, config.pool_bytes), (1_000, 4_096));
    assert_eq!((config.cpu_of(0), config.cpu_of(1)), (0, 3));
}

#[test]
fn listed_cpus_say_how_many_shards_there_are_unless_shards_does() {
    assert_eq!(of_set("cpus=1-3").unwrap().shards, 3);
    let config = of_file("cpus = \"1-2\"\nshards = 4").unwrap();
    let cpus: Vec<u16> = (0..config.shards).map(|shard| config.cpu_of(shard)).collect();
    assert_eq!(cpus, [1, 2, 1, 2]);
}

#[test]
fn localhost_is_an_address_and_other_names_are_not() {
    assert_eq!(of_set("native.listen=localhost:0").unwrap().native_listen.to_string(), "127.0.0.1:0");
    assert!(of_set("native.listen=broker.example:7700").is_err());
    assert!(of_set("native.listen=localhost:70000").is_err());
}

#[test]
fn faults_in_files_name_place_and_remedy() {
    let table = [
        ("shards = 0", r#"coulee.toml:1:1: shards can't be "0", allowed: 1 to 256"#),
        ("\n\n  shard = 2", r#"coulee.toml:3:3: unknown key "shard", did you mean "shards"?"#),
        ("[native]\nlisten = 5", r#"coulee.toml:2:1: native.listen can't be "5", allowed: LISTEN"#),
        ("[native]\nlisten = true", r#"coulee.toml:2:10: native.listen can't be "true", allowed: LISTEN"#),
        ("# größer\n[\"mémory\"]\nx = 1", r#"coulee.toml:2:2: unknown key "mémory", did you mean "memory.shard"?"#),
        ("[memory.shard]\nbytes = 1", "coulee.toml:1:1: memory.shard can't be \"[memory.shard]\", allowed: MEMORY"),
        ("[kafka]\nlisten = \"x\"", r#"coulee.toml:1:2: unknown key "kafka""#),
        ("cpus = \"0,9\"", r#"coulee.toml:1:1: cpus can't be "0,9", allowed: a list of CPUs among 0-3"#),
        (
            "memory.shard = \"8GiB\"",
            r#"coulee.toml:1:8: memory.shard can't be "8GiB", allowed: 32MiB to 4GiB, with 4 shards on this machine"#,
        ),
    ];
    for (text, message) in table {
        let allowed = |key: Key| key.facts().allowed;
        let message = message.replace("LISTEN", allowed(Key::NativeListen));
        let message = message.replace("MEMORY", allowed(Key::MemoryShard));
        assert_eq!(of_file(text).unwrap_err().to_string(), message, "{text:?}");
    }
    let broken = of_file("shards = 1\nlog. = 2").unwrap_err().to_string();
    assert!(broken.starts_with("coulee.toml:2:"), "{broken}");
}

#[test]
fn all_faults_of_all_layers_are_told_at_once() {
    let file = Some(FileText { path: "c.toml", text: "shards = 0\nporrt = 1" });
    let environment = vec![("COULEE_LOG__LEVEL", "loud"), ("COULEE_SHARDS", "2")];
    let layers = Layers { file, environment, sets: vec!["pool.bytes"], ..Layers::default() };
    let faults = Config::load(&layers, &MACHINE()).unwrap_err().faults;
    let places: Vec<String> = faults.iter().map(|fault| fault.place.to_string()).collect();
    assert_eq!(places, ["c.toml:2:1", "--set", "c.toml:1:1", "COULEE_LOG__LEVEL"]);
    assert_eq!(faults[1].to_string(), r#"--set: "pool.bytes" is no key=value"#);
}

#[test]
fn variables_that_are_meant_for_others_are_left_alone() {
    let load = |name: &str| {
        let environment = vec![(name, "1")];
        Config::load(&Layers { environment, ..Layers::default() }, &MACHINE()).map_err(|error| error.to_string())
    };
    for name in ["COULEE_PORT", "COULEE_SERVICE_HOST", "COULEE_PORT_7700_TCP", "COULEE_ADDRESS", "OTHER_SHARDS"] {
        assert!(load(name).is_ok(), "{name}");
    }
    let slip = r#"COULEE_DATADIR: unknown key "datadir", did you mean COULEE_DATA_DIR?"#;
    assert_eq!(load("COULEE_DATADIR"), Err(slip.into()));
    assert_eq!(load("COULEE_KAFKA__LISTEN"), Err(r#"COULEE_KAFKA__LISTEN: unknown key "kafka.listen""#.into()));
}

/// The table of docs/CONFIGURATION.md.
fn page_table() -> String {
    let row = |facts: &Facts| {
        let flag = facts.flag.map_or_else(|| "–".to_owned(), |flag| format!("`{flag}`"));
        let Facts { name, default, allowed, meaning, .. } = facts;
        format!("| `{name}` | {flag} | `{}` | {default} | {allowed} | {meaning} |", facts.key.variable())
    };
    let head = "| key | flag | variable | default | allowed | what it sets |\n|---|---|---|---|---|---|";
    format!("{head}\n{}\n", KEYS.iter().map(row).collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_page_lists_the_keys_as_the_code_has_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIGURATION.md");
    let page = fs::read_to_string(path).expect("docs/CONFIGURATION.md can be read");
    assert!(page.contains(&page_table()), "put this table into docs/CONFIGURATION.md:\n{}", page_table());
}
