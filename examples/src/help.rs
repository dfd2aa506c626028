//! Command lines whose help fits a screen.

use std::ffi::OsString;
use std::fmt::Write as _;

use anyhow::Result;
use clap::{Arg, ArgAction, Command, CommandFactory, Parser};

/// Letters of a line.
const WIDTH: usize = 100;

/// Parses a command line as [`parse`] does; with `--quick`, the options that `quick` returns stand before those that were given, of which
/// the later one counts.
///
/// # Errors
///
/// Those of `quick`.
pub fn parse_quick<A: Parser + CommandFactory>(quick: impl FnOnce() -> Result<Vec<String>>) -> Result<A> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let wanted = |name: &str| args.iter().skip(1).any(|arg| arg == name);
    if !wanted("--quick") || wanted("--help") || wanted("--help-all") || wanted("-h") {
        return Ok(parse());
    }
    args.splice(1..1, quick()?.into_iter().map(OsString::from));
    Ok(A::parse_from(args))
}

/// Parses the command line. `--help` is a screen with a line for each option; `--help-all` says all there is to say.
pub fn parse<A: Parser + CommandFactory>() -> A {
    // Paths among them need not be UTF-8.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(text) = wanted_help(&mut A::command(), &args) {
        print(&text);
        std::process::exit(0);
    }
    A::parse()
}

/// The help that these arguments ask for; `None` if they ask for none, or for that of a subcommand, which is clap's.
fn wanted_help(command: &mut Command, args: &[OsString]) -> Option<String> {
    if args.iter().any(|arg| arg == "--help-all") {
        return Some(command.render_long_help().to_string());
    }
    let subcommand = args.first().is_some_and(|arg| command.find_subcommand(arg).is_some());
    let wanted = !subcommand && args.iter().any(|arg| arg == "--help" || arg == "-h");
    wanted.then(|| screen(command))
}

#[expect(clippy::print_stdout, reason = "a program talks to its user")]
fn print(text: &str) {
    print!("{text}");
}

/// What a program is for, how it is called, and a line for each option that is not for `--help-all` alone, all of them at most 100 letters long.
pub fn screen(command: &mut Command) -> String {
    command.build();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    // The form with a subcommand is clear from the lines that follow.
    let usage = command.render_usage().to_string();
    let usage = usage.lines().next().unwrap_or_default();
    let mut text = format!("{}\n\n{usage}\n", brief(&about, WIDTH));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let name = sub.get_name();
        writeln!(text, "  {name}  {}", brief(&about, WIDTH - name.len() - 4)).expect("a string takes all");
    }
    text.push('\n');
    let options: Vec<(String, String)> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !arg.is_hide_short_help_set())
        .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        .map(|arg| (spelled(arg), described(arg)))
        .chain([("--help-all".to_owned(), "Every option in full".to_owned())])
        .collect();
    let left = options.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, what) in options {
        writeln!(text, "  {name:left$}  {}", brief(&what, WIDTH - left - 4)).expect("a string takes all");
    }
    text
}

/// `--seed SEED`.
fn spelled(arg: &Arg) -> String {
    let value = match arg.get_action() {
        ArgAction::SetTrue => String::new(),
        _ => arg.get_value_names().unwrap_or_default().iter().map(|name| format!(" {name}")).collect(),
    };
    arg.get_long().map_or_else(|| value.trim().to_owned(), |long| format!("--{long}{value}"))
}

/// What it does, and its default.
fn described(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    match (arg.get_action(), &defaults[..]) {
        (ArgAction::SetTrue, _) | (_, []) => help,
        (_, defaults) => format!("{help} [default: {}]", defaults.join(",")),
    }
}

/// A text that is at most `room` letters long: cut where a part of a sentence ends, if there is such a place, and marked.
fn brief(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let cut: String = text.chars().take(room.saturating_sub(2)).collect();
    let end = ["; ", ": ", ", ", " [", " (", ". "].iter().filter_map(|mark| cut.rfind(mark)).max();
    let end = end.filter(|end| 3 * end > 2 * cut.len()).or_else(|| cut.rfind(' ')).unwrap_or(cut.len());
    // A default or a remark is shown whole or not at all.
    let open = [('[', ']'), ('(', ')')].iter().filter_map(|(begin, close)| {
        let begin = cut[..end].rfind(*begin)?;
        (!cut[begin..end].contains(*close)).then_some(begin)
    });
    let end = open.min().unwrap_or(end);
    format!("{} …", cut[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does one thing, and says so in a sentence that is longer than any line of a screen can be, were it not cut at a comma.
    #[derive(Debug, Parser)]
    #[command(name = "thing", version)]
    struct Args {
        /// Seed of everything
        #[arg(long, default_value_t = 3)]
        seed: u64,
        /// Go on
        #[arg(long)]
        resume: bool,
        /// Where the model is; a folder, a file, or the name of something that is on the other side of a long line
        #[arg(long, value_name = "DIR")]
        model: Option<String>,
    }

    #[test]
    fn a_screen_has_a_line_for_each_option() {
        let text = screen(&mut Args::command());
        assert_eq!(
            text,
            "Does one thing, and says so in a sentence that is longer than any line of a screen can be …\n\nUsage: thing [OPTIONS]\n\n  --seed SEED  Seed of everything [default: 3]\n  --resume     \
             Go on\n  --model DIR  Where the model is; a folder, a file, or the name of something that is on the …\n  \
             --help-all   Every option in full\n"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[cfg(unix)]
    #[test]
    fn arguments_need_not_be_text() {
        use std::os::unix::ffi::OsStringExt;

        let strange = OsString::from_vec(b"b\xff.safetensors".to_vec());
        let asked = |args: &[&str]| {
            let args: Vec<OsString> =
                std::iter::once(strange.clone()).chain(args.iter().map(OsString::from)).collect();
            wanted_help(&mut Args::command(), &args)
        };
        assert_eq!(asked(&["--resume"]), None);
        assert_eq!(asked(&["-h"]), Some(screen(&mut Args::command())));
        assert!(asked(&["--help-all"]).is_some_and(|text| text.contains("were it not cut")));
    }

    #[test]
    fn texts_are_cut_where_a_part_ends() {
        assert_eq!(brief("short", 5), "short");
        assert_eq!(brief("the first half, the second half", 20), "the first half …");
        assert_eq!(brief("a, and then no other mark", 20), "a, and then no …");
        assert_eq!(brief("a remark (that is not short) follows", 20), "a remark …");
        assert_eq!(brief("a default [default: those of the model]", 30), "a default …");
    }
}
