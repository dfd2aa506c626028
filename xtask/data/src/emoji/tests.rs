//! From packages to drawings, with packages of a few bytes.

use super::*;
use crate::archive::tests::pack;

fn icons(names: &[(&str, &str)]) -> Vec<u8> {
    let icons: Vec<_> = names
        .iter()
        .map(|(_, name)| format!(r#""{name}": {{"body": "<rect width='16' height='16'/>"}}"#))
        .collect();
    let chars: Vec<_> = names.iter().filter(|(code, _)| !code.is_empty()).collect();
    let chars: Vec<_> = chars.iter().map(|(code, name)| format!(r#""{code}": "{name}""#)).collect();
    let icons = format!(r#"{{"icons": {{{}}}}}"#, icons.join(","));
    let chars = format!("{{{}}}", chars.join(","));
    if chars == "{}" {
        return pack(&[("icons.json", icons.as_bytes())]);
    }
    pack(&[("icons.json", icons.as_bytes()), ("chars.json", chars.as_bytes())])
}

#[test]
fn every_style_is_read_from_its_package() {
    let list = br#"[{"hexcode": "1F528", "annotation": "alarm clock", "group": "objects", "subgroups": "tool", "skintone": ""}]"#;
    let svg: &[u8] = b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>";
    let openmoji =
        pack(&[("data/openmoji.json", list), ("color/svg/1F528.svg", svg), ("black/svg/1F528.svg", svg)]);
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for style in Style::ALL {
        let package = match style {
            Style::OpenmojiColor | Style::OpenmojiBlack => openmoji.clone(),
            Style::Fluent3d => pack(&[("assets/1f528-fe0f.webp", b"")]),
            // By code, by the name of another set, by Unicode's name without dashes.
            Style::Noto | Style::Twemoji | Style::FluentFlat | Style::HighContrast => {
                icons(&[("1f528", "hammer")])
            }
            Style::Fxemoji => icons(&[("", "alarmclock")]),
            _ => icons(&[("", "hammer")]),
        };
        files.insert(style.package().to_owned(), package);
    }
    let (emoji, drawings) = read(&files).unwrap();
    assert_eq!(emoji.len(), 1);
    let drawn = drawn(&drawings);
    for style in Style::ALL {
        assert!(drawn.get(&style).is_some_and(|codes| codes.contains("1f528")), "{style:?}");
    }
    files.insert("twemoji".to_owned(), b"damaged".to_vec());
    let error = format!("{:#}", read(&files).unwrap_err());
    assert!(error.contains("package `twemoji`"), "{error}");
}

#[test]
fn sizes_other_than_the_frozen_ones_are_refused() {
    use clap::Parser;
    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    assert_eq!(Cli::try_parse_from(["emoji"]).unwrap().args.size, 64);
    assert_eq!(Cli::try_parse_from(["emoji", "--size", "96"]).unwrap().args.size, 96);
    assert!(Cli::try_parse_from(["emoji", "--size", "32"]).is_err());
}
