//! The picture of the layers in ARCHITECTURE.md against what the files of a crate import.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::root;

/// Rooms of a crate with their layers, counted from the top of its picture.
type Layers = BTreeMap<String, usize>;

/// Reads the picture: the block that begins with a line "```layers CRATE", with the rooms of one layer on a line.
fn picture(architecture: &str, package: &str) -> Layers {
    let lines = architecture.lines().skip_while(|line| *line != format!("```layers {package}")).skip(1);
    let layers = lines.take_while(|line| !line.starts_with("```"));
    // What follows two spaces and a word in parentheses is said to the reader.
    let rooms = |line: &str| {
        line.split('(').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    layers
        .enumerate()
        .flat_map(|(layer, line)| rooms(line).into_iter().map(move |room| (room, layer)))
        .collect()
}

/// The names that code takes from the root of its crate: `a` and `b` for `crate::a::x` and `use crate::{a, b::y}`.
fn imports(code: &str) -> Vec<String> {
    let uncommented: Vec<&str> =
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = uncommented.join("\n");
    // Tests of a room may use all that is there.
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut names = vec![];
    let mut rest = code;
    while let Some(at) = rest.find("crate::") {
        // `pub(in crate::room)` says who may look, and takes nothing.
        let visibility = rest[..at].ends_with("in ");
        rest = &rest[at + "crate::".len()..];
        if visibility {
            continue;
        }
        let first_word = |text: &str| {
            text.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
        };
        match rest.strip_prefix('{') {
            // A macro that others may use is at the root, wherever it is written.
            None => names.extend(first_word(rest).filter(|name| !rest[name.len()..].starts_with('!'))),
            Some(group) => {
                let mut depth = 0;
                let (mut part, mut parts) = (String::new(), vec![]);
                for c in group.chars() {
                    match c {
                        '}' if depth == 0 => break,
                        ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
                        c => {
                            depth += i32::from(c == '{') - i32::from(c == '}');
                            part.push(c);
                        }
                    }
                }
                parts.push(part);
                names
                    .extend(parts.iter().filter_map(|part| first_word(part)).filter(|name| !name.is_empty()));
            }
        }
    }
    names
}

/// What is wrong with the imports of one file.
fn judge(layers: &Layers, room: &str, path: &Path, code: &str) -> Vec<String> {
    let Some(own) = layers.get(room) else {
        return vec![format!("{}: room `{room}` is not in the picture", path.display())];
    };
    let complaint = |name: String| match layers.get(&name) {
        Some(_) if name == room => None,
        Some(layer) if layer > own => None,
        Some(_) => Some(format!("{}: `{room}` imports `{name}`, which is not below it", path.display())),
        None => {
            Some(format!("{}: `crate::{name}` is no room; import it from the room it is in", path.display()))
        }
    };
    imports(code).into_iter().filter_map(complaint).collect()
}

/// What is wrong with a crate's imports. `lib.rs` stands above all rooms.
fn complaints(layers: &Layers, source: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut open: Vec<PathBuf> = vec![source.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("the crate's folder is there");
            open.extend(entries.map(|entry| entry.expect("it can be read").path()));
            continue;
        }
        let inside = path.strip_prefix(source).expect("it was found there");
        let room = inside.iter().next().map(Path::new).and_then(Path::file_stem);
        let room = room.and_then(|room| room.to_str()).unwrap_or_default();
        let tests = inside.file_stem().is_some_and(|name| name == "tests");
        if room != "lib" && !tests && path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(judge(layers, room, inside, &fs::read_to_string(&path).expect("it is text")));
        }
    }
    found.sort();
    found
}

#[test]
fn no_room_imports_from_one_above_it() {
    let root = root().expect("xtask is in the workspace");
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("it is there");
    for package in ["tpgm-candle", "tpgm-core", "tpgm-nn"] {
        let layers = picture(&architecture, package);
        assert!(layers.len() > 4, "the picture of {package} has {} rooms", layers.len());
        let complaints = complaints(&layers, &root.join("crates").join(package).join("src"));
        assert!(complaints.is_empty(), "{package}:\n{}", complaints.join("\n"));
    }
}

#[test]
fn an_upward_import_is_found() {
    let layers = picture("text\n```layers c\n  upper  beside\n  lower (the floor)\n```\nmore", "c");
    assert_eq!(layers, [("upper", 0), ("beside", 0), ("lower", 1)].map(|(r, l)| (r.to_owned(), l)).into());
    let judged = |room: &str, code: &str| judge(&layers, room, Path::new("file.rs"), code);
    assert!(
        judged("upper", "use crate::lower::{A, B};\nuse crate::upper::part::C; // crate::beside").is_empty()
    );
    assert!(judged("lower", "pub(in crate::upper) fn f() {}").is_empty());
    for planted in
        ["use crate::upper::A;", "use crate::{lower::{x, y}, upper::A};", "fn f() { crate::upper::f() }"]
    {
        assert_eq!(judged("lower", planted), ["file.rs: `lower` imports `upper`, which is not below it"]);
    }
    assert_eq!(judged("beside", "use crate::upper;").len(), 1, "nor from one beside it");
    assert_eq!(judged("lower", "use crate::Thing;").len(), 1, "the root re-exports what is above");
    assert_eq!(judged("new", "").len(), 1, "every room is in the picture");
}
