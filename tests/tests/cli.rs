//! The command line against a real broker: owns what users and scripts see of each command; knows no byte of the wire.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use coulee_tests::broker::{Broker, Folder, Options, program};

/// What a command has left behind.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: i32,
    out: String,
    err: String,
}

fn told(output: Output) -> Told {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it was not killed");
    Told { code, out: text(output.stdout), err: text(output.stderr) }
}

fn command(address: &str, line: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(line).env_clear().env("COULEE_ADDRESS", address);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command line (words between spaces) with this standard input.
fn run_with(broker: &Broker, line: &str, input: &[u8]) -> Told {
    let words: Vec<&str> = line.split(' ').collect();
    let mut child = command(broker.address(), &words).spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that reads nothing may have closed it.
    let _is_taken = stdin.write_all(input).is_ok();
    drop(stdin);
    told(child.wait_with_output().expect("the program ends"))
}

fn run(broker: &Broker, line: &str) -> Told {
    run_with(broker, line, b"")
}

/// Runs a command that has to end well, and gives its standard output.
fn good(broker: &Broker, line: &str) -> String {
    let Told { code, out, err } = run(broker, line);
    assert_eq!(code, 0, "{line}: {out}{err}");
    out
}

/// Runs a command that has to fail with a code, a number and words; nothing goes to standard output.
fn bad(broker: &Broker, line: &str, code: i32, number: u16, words: &str) {
    let told = run(broker, line);
    assert_eq!((told.code, told.out.as_str()), (code, ""), "{line}: {}", told.err);
    let begin = format!("error[E{number}]: ");
    let is_as_meant = told.err.starts_with(&begin) && told.err.contains(words);
    assert!(is_as_meant && told.err.contains("  docs: docs/errors.md#e"), "{line}: {}", told.err);
}

#[test]
fn topics_are_made_shown_changed_and_deleted() {
    let broker = Broker::start();
    assert_eq!(good(&broker, "topic list -o json"), "[]\n");
    let made = good(&broker, "topic create orders -p 3 --set durability=written -o jsonl");
    assert!(
        made.starts_with("{\"name\":\"orders\",\"topic_id\":\"") && made.ends_with(",\"partitions\":3}\n"),
        "{made}"
    );
    assert_eq!(good(&broker, "topic create dry --dry-run"), "");
    assert_eq!(good(&broker, "topic list -o csv"), "name,partitions,durability,internal\norders,3,written,false\n");
    assert!(good(&broker, "topic list --all -o csv").contains("\n__catalog,1,fsync,true\n"));
    good(&broker, "topic alter orders -p 5 --set durability=fsync --dry-run");
    good(&broker, "topic alter orders -p 5 --unset durability");
    let described = good(&broker, "topic describe orders -o yaml");
    assert!(described.contains("durability: \"fsync\"\n") && described.contains("  - partition: 4\n"), "{described}");
    let table = good(&broker, "topic describe orders");
    assert!(table.contains("\nPARTITION  SHARD  ") && table.contains("\nmax.message.bytes "), "{table}");
    assert_eq!(
        run(&broker, "topic delete orders --dry-run").err,
        "would delete topic orders with 5 partitions and 0 records\n"
    );
    bad(&broker, "topic delete __catalog --dry-run", 2, 17, "names that begin with __ are the broker's own");
    bad(&broker, "topic delete orders", 2, 2_010, "say yes beforehand with: -y");
    good(&broker, "topic delete orders -y");
    assert_eq!(good(&broker, "topic list -o jsonl"), "");
}

#[test]
fn groups_are_listed_described_moved_and_deleted() {
    let broker = Broker::start_with(&Options::default().and("group.initial.rebalance.delay=0s"));
    assert_eq!(good(&broker, "group list -o json"), "[]\n");
    good(&broker, "topic create orders");
    run_with(&broker, "produce orders", b"a\nb\nc\nd\n");
    let mut read: Vec<String> = good(&broker, "consume orders --group g -n 3").lines().map(str::to_owned).collect();
    read.extend(good(&broker, "consume orders --group g -n 1").lines().map(str::to_owned));
    read.sort();
    assert_eq!(read, ["a", "b", "c", "d"], "the second goes on where the first has committed");
    assert_eq!(good(&broker, "group list -o csv"), "name,state,members,protocol_type\ng,Empty,0,consumer\n");
    run_with(&broker, "produce orders", b"e\n");
    let described = good(&broker, "group describe g -o json");
    assert!(described.contains("\"state\": \"Empty\"") && described.contains("\n  \"lag\": 1,\n"), "{described}");
    for line in good(&broker, "group describe g -o csv").lines().skip(1) {
        let [_, _, committed, end, lag, seconds, trend, _, _] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let number = |text: &str| text.parse::<u64>().unwrap();
        assert_eq!((number(end) - number(committed), trend), (number(lag), "steady"), "{line}");
        assert_eq!(seconds.parse::<f64>().unwrap() > 0.0, lag == "1", "{line}");
    }
    let table = good(&broker, "group describe g");
    assert!(table.contains("\nTOPIC ") && table.contains("  LAG_SECONDS  TREND"), "{table}");
    let dry = good(&broker, "group seek g --to start --dry-run -o csv");
    assert!(dry.starts_with("topic,partition,before,after,change\norders,0,"), "{dry}");
    assert_eq!(good(&broker, "group seek g --to start --dry-run -o csv"), dry, "nothing was moved");
    assert_eq!(good(&broker, "group seek g --to -1h -o csv"), dry, "an hour ago there was nothing");
    assert_eq!(good(&broker, "consume orders --group g -n 5").lines().count(), 5);
    bad(&broker, "group seek g --to 99", 1, 1, "has no offset 99");
    bad(&broker, "group seek g --to end --topic orders:9", 3, 3, "partitions 0 to 0, not 9");
    bad(&broker, "group seek none --to end", 3, 69, "see the groups with: coulee group list");
    bad(&broker, "group describe none", 3, 69, "group \"none\" does not exist");
    good(&broker, "group seek new --to end --topic orders:0");
    let mut member = command(broker.address(), &["consume", "orders", "--group", "g"]).spawn().unwrap();
    while !good(&broker, "group list -o csv").contains("g,Stable,1,consumer") {}
    bad(&broker, "group seek g --to start", 6, 68, "stop its members first");
    bad(&broker, "group delete g -y", 6, 68, "has 1 member");
    assert!(good(&broker, "group describe g -o csv").contains(",127.0.0.1\n"));
    member.kill().unwrap();
    member.wait().unwrap();
    assert_eq!(run(&broker, "group delete new --dry-run").err, "would delete group new with 1 committed offset\n");
    good(&broker, "group delete new -y");
    bad(&broker, "group delete new -y", 3, 69, "does not exist");
}

#[test]
fn what_a_broker_refuses_is_told_with_what_to_do() {
    let broker = Broker::start();
    good(&broker, "topic create orders -p 2");
    bad(&broker, "topic create orders", 6, 36, "topic \"orders\" exists already");
    bad(&broker, "topic create a/b", 2, 17, "expected letters, digits");
    bad(&broker, "topic create many -p 20000", 2, 37, "1 to 10000 partitions");
    bad(&broker, "topic create odd --set durabilty=fsync", 2, 40, "durabilty");
    bad(&broker, "topic create odd --set durability=never", 2, 40, "never");
    bad(&broker, "topic alter orders -p 1", 2, 37, "never fewer than before");
    bad(&broker, "topic alter orders --set retention=1", 2, 40, "retention");
    bad(&broker, "topic alter orders", 2, 2_000, "--partitions <N>|--set <KEY=VALUE>|--unset <KEY>");
    for line in
        ["topic describe order", "topic delete order -y", "produce order", "consume order", "topic alter order -p 9"]
    {
        bad(&broker, line, 3, 3, "did you mean \"orders\"?  create it with: coulee topic create order");
    }
    bad(&broker, "simulate users order --count 1 --seed 1", 3, 3, "did you mean \"orders\"?");
    bad(&broker, "consume orders -p 7", 3, 3, "topic orders has no partition 7: there are 2, counted from 0");
    bad(&broker, "consume orders --offset soon", 2, 2_000, "expected start, end, an offset or @time");
    bad(&broker, "consume orders --offset 5 -p 0 -n 1", 1, 1, "--offset start");
    bad(&broker, "consume orders --offset 5 --until-end", 1, 1, "partition 0 has no offset 5, it has 0 to 0");
    assert_eq!(good(&broker, "consume orders --offset 0 --until-end"), "");
}

#[test]
fn lines_go_in_and_come_out_as_they_were() {
    let broker = Broker::start();
    good(&broker, "topic create t");
    let lines = b"{\"user\":{\"id\":\"ann\"},\"n\":1}\nno json\n{\"n\":2}\n{\"user\":{\"id\":7}}";
    let mixed = run_with(&broker, "produce t --key-field user.id -o jsonl", lines);
    assert_eq!(mixed.code, 7);
    assert_eq!(mixed.out, "{\"line\":1,\"partition\":0,\"offset\":0}\n{\"line\":4,\"partition\":0,\"offset\":1}\n");
    let expected = "error[E2008]: 2 of 4 lines were acknowledged\n  line 2: no JSON from column 2 on\n  \
                    line 3: no field \"user.id\"\n";
    assert!(mixed.err.starts_with(expected), "{}", mixed.err);
    let sent = run_with(&broker, "produce t --acks 0 -o json", b"three\r\n\n");
    assert!(sent.code == 0 && sent.out.starts_with("{\"sent\":2,"), "{sent:?}");
    let nothing = run(&broker, "produce t");
    assert_eq!((nothing.code, nothing.out.as_str()), (0, ""));
    // What was only sent may still be on its way.
    assert_eq!(run_with(&broker, "produce t -q", b"end").err, "");
    let all = good(&broker, r"consume t --until-end -f %o|%k|%v|%h\n");
    assert_eq!(all.lines().next(), Some(r#"0|ann|{"user":{"id":"ann"},"n":1}|"#));
    assert_eq!(all.lines().nth(1), Some(r#"1|7|{"user":{"id":7}}|"#));
    assert!(all.contains("||end|\n"), "{all}");
    assert_eq!(good(&broker, r"consume t --offset 1 -n 1 -f %t/%p/%o"), "t/0/1");
    assert_eq!(good(&broker, "consume t --offset end --until-end"), "");
    assert_eq!(good(&broker, "consume t --offset @2020-01-01T00:00Z -n 1 -f %o"), "0");
    assert_eq!(good(&broker, "consume t --offset @2100-01-01 --until-end"), "");
    let json = good(&broker, "consume t -n 1 -o jsonl");
    assert!(json.starts_with(r#"{"topic":"t","partition":0,"offset":0,"timestamp":"#), "{json}");
}

#[test]
fn a_line_may_be_as_long_as_the_topic_takes_records() {
    let broker = Broker::start();
    good(&broker, "topic create t --set max.message.bytes=4000000");
    let line = |bytes: usize| [&vec![b'x'; bytes][..], b"\n"].concat();
    let (large, too_large) = (line(3_900_000), line(4_000_000));
    let sent = run_with(&broker, "produce t -q", &[&b"a\n"[..], &large, b"b\n"].concat());
    assert_eq!(sent.code, 0, "{}", sent.err);
    let lengths = |text: &str| text.lines().map(str::len).collect::<Vec<_>>();
    assert_eq!(lengths(&good(&broker, "consume t --until-end")), [1, 3_900_000, 1]);
    let refused = run_with(&broker, "produce t", &[&too_large[..], b"c\n"].concat());
    let told = refused.err.contains("line 1: record needs ")
        && refused.err.contains(" bytes, max.message.bytes of the topic is 4000000\n");
    assert!(refused.code == 7 && told, "{}: {}", refused.code, refused.err);
    good(&broker, "topic alter t --set max.message.bytes=5000000");
    assert_eq!(run_with(&broker, "produce t -q", &too_large).code, 0);
}

#[test]
fn events_that_a_simulation_tells_are_where_it_says() {
    let broker = Broker::start();
    good(&broker, "topic create events.raw -p 4");
    let told = good(&broker, "simulate users events.raw --count 5000 --seed 9 -o jsonl");
    assert_eq!(told.lines().count(), 5_000);
    let read = good(&broker, r#"consume events.raw --until-end -f "partition":%p,"offset":%o}%v\n"#);
    let mut of_read: Vec<String> = Vec::new();
    for line in read.lines() {
        let (place, event) = line.split_once('}').unwrap();
        let id = event.split(',').next().unwrap().trim_start_matches('{');
        of_read.push(format!("{id},{place}}}"));
    }
    let mut of_told: Vec<&str> = told.lines().map(|line| line.split_once(',').unwrap().1).collect();
    of_read.sort_unstable();
    of_told.sort_unstable();
    assert_eq!(of_read, of_told);
}

#[test]
fn an_interrupted_simulation_ends_well_and_a_reader_that_leaves_stops_nobody() {
    let broker = Broker::start();
    good(&broker, "topic create t");
    let words = ["simulate", "users", "t", "--rate", "500", "--seed", "1", "-o", "jsonl"];
    let mut child = command(broker.address(), &words).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    let sent = Command::new("bash").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    std::io::copy(&mut lines, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut child = command(broker.address(), &["consume", "t"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    drop(lines);
    // It notices at its next line.
    good(&broker, "simulate users t --count 5000 --seed 2");
    let told = told(child.wait_with_output().unwrap());
    assert_eq!((told.code, told.err.as_str()), (0, ""));
}

/// Files of a stopped broker that hold these bytes.
fn files_with(folder: &Folder, bytes: &[u8]) -> Vec<(PathBuf, Vec<u8>, usize)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.data()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a data directory can be listed") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = fs::read(&path).expect("a file can be read");
            let at = content.windows(bytes.len()).position(|window| window == bytes);
            found.extend(at.map(|at| (path, content, at)));
        }
    }
    found
}

#[test]
fn damage_on_disk_is_told_with_its_range_and_stepped_over_only_when_asked() {
    let broker = Broker::start();
    good(&broker, "topic create t");
    for line in ["before", "damaged-one", "behind"] {
        assert_eq!(run_with(&broker, "produce t", line.as_bytes()).code, 0);
    }
    let folder = broker.stop();
    let files = files_with(&folder, b"damaged-one");
    assert!(!files.is_empty(), "the record is in a file");
    for (path, mut content, at) in files {
        content[at] ^= 1;
        fs::write(path, content).unwrap();
    }
    let broker = Broker::start_on(folder, &Options::default());
    let range = "partition 0: stored records of offsets 1 to 2 (exclusive) are damaged";
    let stopped = run(&broker, "consume t --until-end");
    assert_eq!((stopped.code, stopped.out.as_str()), (1, "before\n"), "{}", stopped.err);
    assert!(stopped.err.contains(&format!("warning: {range}; the partition is read no further\n")), "{}", stopped.err);
    assert!(stopped.err.contains(&format!("error[E1006]: {range}\n")), "{}", stopped.err);
    let skipped = run(&broker, "consume t --until-end --skip-damaged");
    assert_eq!((skipped.code, skipped.out.as_str()), (1, "before\nbehind\n"), "{}", skipped.err);
    assert!(skipped.err.contains(&format!("warning: {range}; stepped over\n")), "{}", skipped.err);
}

#[test]
fn the_running_configuration_is_what_the_broker_was_given() {
    let broker = Broker::start();
    let shown = good(&broker, "config show --running -o csv");
    assert!(
        shown.contains("\nshards,2,flag,--shards\n") && shown.contains("\npool.bytes,2MiB,flag,--set\n"),
        "{shown}"
    );
    let explained = good(&broker, "config explain pool.bytes --running");
    assert!(explained.contains("value     2MiB\n") && explained.contains("from      flag --set\n"), "{explained}");
    bad(&broker, "config explain pool.byte", 2, 2_001, "did you mean: coulee config explain pool.bytes");
}

#[test]
fn a_diagnosis_leaves_no_trace_and_tells_whether_the_directory_is_in_use() {
    let folder = Folder::new();
    let doctor = |data: &str| {
        told(
            command("", &["doctor", "--data-dir", data, "--listen", "127.0.0.1:0", "-o", "csv"])
                .output()
                .expect("it runs"),
        )
    };
    let data = folder.data().join("below");
    let found = doctor(data.to_str().expect("UTF-8"));
    assert_eq!(found.code, 0, "{found:?}");
    assert!(found.out.contains("will be made at the first start"), "{found:?}");
    assert!(found.out.contains("\nio_uring and direct I/O,good,"), "it was tried beside: {found:?}");
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 0);
    fs::create_dir_all(&data).expect("a directory can be made");
    let found = doctor(data.to_str().expect("UTF-8"));
    assert!(found.code == 0 && found.out.contains("is there and free"), "{found:?}");
    assert_eq!(fs::read_dir(&data).expect("it is there").count(), 0);
    let broker = Broker::start();
    let found = doctor(broker.folder().data().to_str().expect("UTF-8"));
    assert!(found.code == 1 && found.out.contains("the data directory is in use by process "), "{found:?}");
}

/// What bash completes the last of these words to, with the script of the program.
fn completed(address: &str, words: &str) -> Vec<String> {
    let script = r#"
        source <("$0" completion bash)
        COMP_WORDS=("$0" "$@"); COMP_CWORD=$#; COMPREPLY=()
        _coulee_or_topics "$0" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("/bin/bash");
    bash.args(["--norc", "-c", script]).arg(program()).args(words.split(' '));
    let output = bash.env("COULEE_ADDRESS", address).output().expect("there is a bash");
    let told = told(output);
    assert_eq!(told.err, "", "{words}");
    told.out.lines().map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_the_names_of_topics_from_the_running_broker() {
    let broker = Broker::start();
    for name in ["orders", "orders.old", "users"] {
        good(&broker, &format!("topic create {name}"));
    }
    assert_eq!(completed(broker.address(), "topic describe or"), ["orders", "orders.old"]);
    assert_eq!(completed(broker.address(), "consume -n 3 "), ["orders", "orders.old", "users"]);
    assert_eq!(completed(broker.address(), "topic descr"), ["describe"]);
    assert!(completed(broker.address(), "consume --until").contains(&"--until-end".to_owned()));
    // Nobody listens there any more: flags are completed as before, and nothing is said.
    let address = broker.address().to_owned();
    let _folder = broker.stop();
    assert!(!completed(&address, "consume or").contains(&"orders".to_owned()));
}

#[test]
fn a_second_broker_on_the_same_address_or_data_is_told_who_is_in_the_way() {
    let broker = Broker::start();
    let other = Folder::new();
    let serve = |data: PathBuf, listen: &str| {
        let data = data.into_os_string().into_string().unwrap();
        told(command("", &["serve", "--data-dir", &data, "--listen", listen]).env_clear().output().unwrap())
    };
    let taken = serve(other.data(), broker.address());
    assert_eq!((taken.code, taken.out.as_str()), (6, ""), "{}", taken.err);
    assert!(taken.err.contains("error[E2006]: ") && taken.err.contains(broker.address()), "{}", taken.err);
    let held = serve(broker.folder().data(), "127.0.0.1:0");
    assert_eq!((held.code, held.out.as_str()), (6, ""), "{}", held.err);
    assert!(held.err.contains("error[E2007]: ") && held.err.contains("in use by process"), "{}", held.err);
}

/// What a command shows on a terminal, where all of it is one stream.
fn on_terminal(broker: &Broker, line: &str, no_color: &str) -> String {
    let line = format!("{} {line}", program().display());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("COULEE_ADDRESS", broker.address()).env("NO_COLOR", no_color);
    let output = command.stdin(Stdio::null()).output().expect("script is there");
    String::from_utf8(output.stdout).expect("UTF-8").replace("\r\n", "\n")
}

#[test]
fn a_terminal_gets_colours_and_the_next_command_and_a_pipe_gets_neither() {
    let broker = Broker::start();
    good(&broker, "topic create orders");
    let table = "NAME    PARTITIONS  DURABILITY  INTERNAL\norders           1  fsync       false\n";
    assert_eq!(good(&broker, "topic list"), table);
    let shown = on_terminal(&broker, "topic list", "");
    assert!(shown.starts_with(table) && shown.contains("next: coulee topic describe TOPIC\n"), "{shown}");
    assert!(on_terminal(&broker, "topic describe nope", "").contains("\x1b[1;31merror[E3]\x1b[0m"));
    for (line, no_color) in [("topic describe nope", "1"), ("--no-color topic describe nope", "")] {
        let plain = on_terminal(&broker, line, no_color);
        assert!(plain.contains("error[E3]: topic \"nope\"") && !plain.contains('\x1b'), "{plain}");
    }
    let quiet = on_terminal(&broker, "-q topic create quiet", "");
    assert_eq!(quiet, "");
    let bar = on_terminal(&broker, "simulate users orders --count 20000 --seed 1", "");
    assert!(bar.contains("20000 events acknowledged in "), "{bar}");
}
