//! Exit codes, help, completions, and what a reader that stops early sees.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use clap::CommandFactory;

use crate::args::Args;
use crate::common::{Folder, tpgm};

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

#[test]
fn every_help_fits_a_screen_and_says_what_exit_codes_mean() {
    Args::command().debug_assert();
    let commands = [
        &["--help"][..],
        &["inspect", "--help"],
        &["distances", "--help"],
        &["merge", "--help"],
        &["merge", "wise", "--help"],
        &["merge", "fixed-radius", "--help"],
        &["merge", "model-stock", "--help"],
        &["merge", "soup", "--help"],
        &["convert", "--help"],
    ];
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for args in commands {
        let help = tpgm(args);
        // Long lines go on in the next one.
        let lines: usize = help.text().lines().map(|line| line.chars().count().div_ceil(100).max(1)).sum();
        assert!(lines <= 50, "{args:?}: {lines} lines");
        assert!(help.out.contains("Exit codes: 0 done; 2 an option"), "{args:?}: {}", help.out);
        if let [.., command, "--help"] = args {
            assert!(readme.contains(&format!("tpgm {}", &args[..args.len() - 1].join(" "))), "{command}");
        }
    }
    for code in ["| 0 |", "| 2 |", "| 3 |", "| 4 |"] {
        assert!(readme.contains(code), "{code}");
    }
}

#[test]
fn completions_are_of_every_command() {
    for shell in SHELLS {
        let script = tpgm(["completions", shell]);
        for word in ["inspect", "fixed-radius", "--rename"] {
            // fish writes long options as `-l rename`.
            let found = script.text().contains(word.trim_start_matches('-'));
            assert!(found, "{shell} has no {word}");
        }
    }
    assert_eq!(tpgm(["completions", "tcsh"]).code, 2);
}

#[test]
fn files_that_cannot_be_used_are_a_code_of_their_own() {
    let folder = Folder::new();
    let (no, out) = (folder.text("none"), folder.text("out"));
    assert!(tpgm(["inspect", &no]).fails(3).contains("none.safetensors"));
    for (content, part) in [
        (&b""[..], "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 7\n", "git lfs pull"),
        (b"<!doctype html><html>", "a web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x10\0\0\0\0\0\0\0{\"w\":", "not a safetensors file"),
        (b"\x80\x04\x95", "a pickle, but not of `torch.save`"),
    ] {
        fs::write(folder.path("bad"), content).unwrap();
        let bad = folder.text("bad");
        for args in [
            &["inspect", &bad][..],
            &["convert", &bad, "--out", &out],
            &["distances", "--anchor", &bad, &bad],
            &["merge", "soup", &bad, "--out", &out],
        ] {
            let run = tpgm(args);
            let error = run.fails(3);
            assert!(error.contains("bad.safetensors") && error.contains(part), "{args:?}: {error}");
        }
    }
    assert!(!folder.path("out").exists());
    // A place where nothing can be written.
    let w = candle_core::Tensor::new(&[1f32], &candle_core::Device::Cpu).unwrap();
    folder.save("good", &[("w", w)]);
    let nowhere = folder.0.path().join("none/out.safetensors");
    let run = tpgm(["convert", &folder.text("good"), "--out", nowhere.to_str().unwrap()]);
    assert!(run.fails(3).contains("out.safetensors"), "{run:?}");
}

#[test]
fn options_that_make_no_sense_are_a_code_of_their_own() {
    for args in [&[][..], &["merge"], &["inspect"], &["inspect", "a", "b"], &["convert", "a"], &["show", "a"]]
    {
        let run = tpgm(args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert!(run.err.contains("Usage: tpgm"), "{run:?}");
    }
}

#[cfg(unix)]
#[test]
fn paths_need_not_be_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let folder = Folder::new();
    let w = candle_core::Tensor::new(&[1f32], &candle_core::Device::Cpu).unwrap();
    folder.save("w", &[("w", w)]);
    let [strange, out] = [&b"b\xff.safetensors"[..], b"\xfe.safetensors"]
        .map(|name| folder.0.path().join(OsStr::from_bytes(name)));
    if fs::copy(folder.path("w"), &strange).is_err() {
        return; // A file system whose names are text.
    }
    let (strange, out) = (strange.as_os_str(), out.as_os_str());
    let args = |args: &[&'static str]| args.iter().map(|arg| OsStr::new(*arg)).collect::<Vec<_>>();
    for run in [
        [args(&["inspect", "--json"]), vec![strange]].concat(),
        [args(&["distances", "--json", "--anchor"]), vec![strange, strange]].concat(),
        [args(&["merge", "soup", "--json", "--out"]), vec![out, strange]].concat(),
        [args(&["merge", "wise", "--json", "--out"]), vec![out, OsStr::new("--anchor"), strange, strange]]
            .concat(),
        [args(&["convert", "--json", "--out"]), vec![out, strange]].concat(),
    ] {
        let text = tpgm(&run).json().to_string();
        assert!(text.contains("b\u{fffd}.safetensors"), "{run:?}: {text}");
    }
}

#[test]
fn a_reader_may_stop_early() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tpgm"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(child.wait().unwrap().success() && err.is_empty(), "{err}");
}
