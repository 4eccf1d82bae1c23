//! The program as a process: owns what scripts rely on (streams, exit codes, pipes); knows no broker.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// The program with a clean environment.
fn coulee(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coulee"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = coulee(arguments).stdin(Stdio::piped()).spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that reads nothing may have closed it.
    let _is_taken = stdin.write_all(input).is_ok();
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

/// Exit code, standard output, standard error.
fn told(arguments: &[&str], input: &[u8]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = run(arguments, input);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("it was not killed"), text(stdout), text(stderr))
}

#[test]
fn exit_codes_are_those_of_the_conventions() {
    let folder = std::env::temp_dir().join(format!("coulee-cli-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("coulee.toml");
    std::fs::write(&config, "shards = 2\n[native]\nlisen = 5\n").unwrap();
    let config = config.to_str().unwrap();
    let missing = folder.join("missing").to_str().unwrap().to_owned();
    let table: [(&[&str], &[u8], i32, &str); 9] = [
        (&["--version"], b"", 0, ""),
        (&["config", "check"], b"", 0, ""),
        (&["config", "check", "--config", config], b"", 2, "E2001"),
        (&["config", "explain", "nothing.known"], b"", 2, "E2001"),
        (&["topic"], b"", 2, ""),
        (&["consume", "t", "--offset", "x"], b"", 2, "E2000"),
        (&["produce", "t", "--file", &missing], b"", 3, "E2002"),
        (&["produce", "t", "--key-field", "k", "--dry-run"], b"{\"k\":1}\nbad\n", 7, "E2008"),
        (&["produce", "t", "--key-field", "k", "--dry-run"], b"{\"k\":1}\n", 0, ""),
    ];
    for (arguments, input, code, error) in table {
        let (found, stdout, stderr) = told(arguments, input);
        assert_eq!(found, code, "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(error), "{arguments:?}: {stderr}");
        assert!(code == 0 || stdout.is_empty(), "messages go to standard error: {arguments:?}: {stdout}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn without_a_broker_every_command_that_needs_one_says_so_and_exits_with_5() {
    // Nobody can listen on port 0.
    let address = "127.0.0.1:0";
    let commands: [&[&str]; 7] = [
        &["topic", "list"],
        &["topic", "create", "t"],
        &["topic", "delete", "t", "-y"],
        &["produce", "t"],
        &["consume", "t", "--until-end"],
        &["simulate", "users", "t", "--count", "1"],
        &["config", "show", "--running"],
    ];
    for command in commands {
        let arguments = [command, &["--address", address]].concat();
        let (code, stdout, stderr) = told(&arguments, b"one\n");
        assert_eq!((code, stdout.as_str()), (5, ""), "{arguments:?}: {stderr}");
        let expected = format!("error[E2003]: no connection to {address}: connection refused\n");
        assert!(stderr.contains(&expected), "{arguments:?}: {stderr}");
        assert!(stderr.contains("  hint: ") && stderr.contains("  docs: docs/errors.md#e2003"), "{stderr}");
    }
}

#[test]
fn what_answers_without_being_a_broker_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let web = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").unwrap();
        // Reads until the other side goes, so that the answer is not lost in a reset.
        drop(socket.read_to_end(&mut Vec::new()));
    });
    let (code, _, stderr) = told(&["topic", "list", "--address", &address], b"");
    web.join().unwrap();
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.starts_with("error[E2004]: "), "{stderr}");
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    // No count: it would go on for ever.
    let mut child =
        coulee(&["simulate", "users", "t", "--seed", "1", "--dry-run", "--rate", "1000000"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"eventId\":"), "{line}");
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn the_same_seed_makes_the_same_users_do_the_same() {
    let events = |seed: &str| {
        let (code, stdout, stderr) =
            told(&["simulate", "users", "t", "--dry-run", "--count", "200", "--seed", seed], b"");
        assert_eq!((code, stderr.as_str()), (0, ""));
        // All but id and time, which are those of the run.
        let parts: Vec<String> =
            stdout.lines().map(|line| line[line.find("\"payload\"").unwrap()..].to_owned()).collect();
        assert_eq!(parts.len(), 200);
        parts
    };
    assert_eq!(events("7"), events("7"));
    assert_ne!(events("7"), events("8"));
}

#[test]
fn answers_come_in_every_form_on_standard_output() {
    for (output, expected) in [
        ("table", "shards  7      flag    --set\n"),
        ("json", "\"value\": \"7\""),
        ("jsonl", "{\"key\":\"shards\",\"value\":\"7\",\"origin\":\"flag\",\"from\":\"--set\"}\n"),
        ("yaml", "- key: \"shards\"\n  value: \"7\"\n"),
        ("csv", "key,value,origin,from\nshards,7,flag,--set\n"),
    ] {
        let (code, stdout, stderr) = told(&["config", "show", "--set", "shards=7", "-o", output], b"");
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.contains(expected), "{output}: {stdout}");
    }
}

#[test]
fn variables_set_keys_and_slips_in_them_are_faults() {
    let show = |name: &str| {
        let output = coulee(&["config", "show", "-o", "csv"]).env(name, "127.0.0.1:1").output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = show("COULEE_NATIVE__LISTEN");
    assert_eq!(
        (code, text.lines().nth(1)),
        (Some(0), Some("native.listen,127.0.0.1:1,environment,COULEE_NATIVE__LISTEN"))
    );
    let (code, text) = show("COULEE_NATIVE__LISEN");
    assert_eq!(code, Some(2));
    assert!(text.contains("did you mean COULEE_NATIVE__LISTEN?"), "{text}");
}
