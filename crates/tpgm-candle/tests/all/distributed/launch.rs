//! Processes that find each other over TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tpgm_candle::distributed::{Error, Launch, StartProblem};

/// In a child process: how long it waits for the others, in milliseconds.
const WAIT: &str = "TPGM_TEST_WAIT";

/// This test program again, as a rank.
fn start(rank: usize, size: usize, port: u16, wait: Duration) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "distributed::launch::child_is_a_rank", "--ignored", "--nocapture"]);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env_remove("TORCHELASTIC_USE_AGENT_STORE").env_remove("TPGM_PORT");
    command.env(WAIT, wait.as_millis().to_string());
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// What a rank says in the end.
fn end(child: Child) -> String {
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let said =
        output.lines().find_map(|line| line.split_once("rank says: ")).map(|(_, said)| said.to_owned());
    said.unwrap_or_else(|| panic!("{output}"))
}

#[test]
#[ignore = "the child of another test"]
fn child_is_a_rank() {
    // Not set where somebody runs ignored tests.
    let Ok(wait) = std::env::var(WAIT) else { return };
    let wait = Duration::from_millis(wait.parse().unwrap());
    let launch = Launch::from_env().unwrap().unwrap();
    match launch.exchange(format!("from rank {}", launch.rank).as_bytes(), wait) {
        Ok(bytes) => println!("rank says: got {}", String::from_utf8(bytes).unwrap()),
        Err(error) => println!("rank says: {error}"),
    }
}

/// One that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Connects to a rank 0 that is about to listen.
fn connect(port: u16) -> TcpStream {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) if begun.elapsed() > LONG => panic!("rank 0 does not listen: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn all_get_the_bytes_of_rank_0_in_any_order_of_start() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let port = free_port();
        let children = order.map(|rank| {
            let child = start(rank, 3, port, LONG);
            thread::sleep(Duration::from_millis(50));
            child
        });
        for child in children {
            assert_eq!(end(child), "got from rank 0");
        }
    }
}

#[test]
fn strangers_are_sent_away() {
    let port = free_port();
    let first = start(0, 2, port, LONG);
    // One that says nothing, one that says something else, one that goes at once.
    let _silent = connect(port);
    connect(port).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(connect(port));
    connect(port).write_all(&[b'x'; 1000]).unwrap();
    let second = start(1, 2, port, LONG);
    assert_eq!(end(second), "got from rank 0");
    assert_eq!(end(first), "got from rank 0");
}

#[test]
fn ranks_that_do_not_come_are_named_to_all_that_did() {
    let (port, wait) = (free_port(), Duration::from_secs(10));
    let children = [0, 2].map(|rank| start(rank, 4, port, wait));
    let begun = Instant::now();
    let [first, third] = children.map(end);
    let expected = format!("ranks 1, 3 did not come to 127.0.0.1:{port} within 10s");
    assert_eq!(first, format!("there is no group of ranks: {expected}"));
    assert_eq!(third, format!("there is no group of ranks: rank 0 says: {expected}"));
    assert!(begun.elapsed() < 5 * wait);
    // Rank 0 itself.
    let said = end(start(1, 2, port, Duration::from_millis(300)));
    assert!(said.contains(&format!("rank 0 did not answer at 127.0.0.1:{port} within 300ms: ")), "{said}");
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn two_ranks_with_one_number_are_told() {
    for twice in [0, 1] {
        let port = free_port();
        let first = start(0, 3, port, LONG);
        let mut others = [connect(port), connect(port)];
        for other in &mut others {
            let hello = format!("tpgm-ranks 1 {} {twice} 3\n", env!("CARGO_PKG_VERSION"));
            other.write_all(hello.as_bytes()).ok();
        }
        let said = end(first);
        let expected = format!("two processes say that they are rank {twice}: one from 127.0.0.1:");
        assert!(said.contains(&expected), "{said}");
        if twice == 1 {
            for mut other in others {
                let mut answer = String::new();
                other.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("tpgm-ranks error ") && answer.contains(&expected), "{answer}");
            }
        }
    }
}

#[test]
fn another_version_and_another_number_of_ranks_are_named() {
    let cases = [
        ("tpgm-ranks 1 0.0.9 1 2\n", "rank 1 runs version 0.0.9 of tpgm-candle, but rank 0 runs "),
        (
            concat!("tpgm-ranks 1 ", env!("CARGO_PKG_VERSION"), " 1 8\n"),
            "rank 1 says that there are 8 ranks, but rank 0 says 2",
        ),
    ];
    for (hello, expected) in cases {
        let port = free_port();
        let first = start(0, 2, port, LONG);
        let mut stream = connect(port);
        stream.write_all(hello.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(expected), "{answer}");
        assert!(end(first).contains(expected));
    }
}

#[test]
fn a_port_that_is_taken_and_something_else_in_place_of_rank_0_are_told() {
    let other = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    let said = end(start(0, 2, port, LONG));
    assert!(said.contains(&format!("rank 0 cannot listen on port {port}: ")), "{said}");
    assert!(said.contains("choose another port, with `TPGM_PORT` on every rank"), "{said}");

    let second = start(1, 2, port, LONG);
    let (mut stream, _) = other.accept().unwrap();
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let said = end(second);
    assert!(said.contains("is not rank 0 of this program: it says `HTTP/1.1 400 Bad Request\\r`"), "{said}");
    // One that is killed.
    let second = start(1, 2, port, LONG);
    drop(other.accept().unwrap());
    let said = end(second);
    assert!(said.contains("it ended the connection without an answer"), "{said}");
}

#[test]
fn one_rank_meets_nobody() {
    let launch = Launch { rank: 0, size: 1, local_rank: 0, address: "nowhere".to_owned(), port: 1 };
    assert_eq!(launch.exchange(b"alone", LONG).unwrap(), b"alone");
    let launch = Launch { rank: 1, size: 2, ..launch };
    let error = launch.exchange(b"", Duration::from_millis(10)).unwrap_err();
    assert!(matches!(error, Error::Start(StartProblem::Unreachable { .. })), "{error}");
}
