use super::*;
use crate::data::Strictness;

fn fields() -> Fields {
    Fields { label: "label".to_owned(), text: "text".to_owned() }
}

fn rows(name: &str, content: &[u8], problems: &Problems) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    read(&path, &fields(), problems)
}

#[test]
fn csv_is_read_with_quotes_and_line_breaks_and_bad_rows_are_named() {
    let content = b"id,text,label\n1,\"a, \"\"b\"\"\nc\",x\n2,,x\n3,d\n4,\xff,y\n5,e, y \n6,f,\n";
    let problems = Problems::default();
    let rows = rows("t.csv", content, &problems).unwrap();
    let read: Vec<_> = rows.iter().map(|row| (row.label.as_str(), row.text.as_str())).collect();
    assert_eq!(read, [("x", "a, \"b\"\nc"), ("y", "e")]);
    assert_eq!(problems.count(), 4);
    let text = problems.to_string();
    for part in
        ["t.csv:4: no `text`", "t.csv:5: 2 fields, the header has 3", "field 2 is not UTF-8", "no `label`"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn jsonl_is_read_and_bad_lines_are_named() {
    let content =
        b"{\"text\": \"a\", \"label\": 3}\n\n[1]\n{\"text\": \"b\"}\n{\"text\": null, \"label\": \"x\"}\n";
    let problems = Problems::default();
    let rows = rows("t.jsonl", content, &problems).unwrap();
    assert_eq!(rows, [Row { label: "3".to_owned(), text: "a".to_owned(), line: 1 }]);
    let text = problems.to_string();
    for part in ["t.jsonl:3: not a JSON object", "t.jsonl:4: no `label`", "t.jsonl:5: `text` is null"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_missing_file_or_column_and_strict_rows_are_errors() {
    let problems = Problems::default();
    let error = rows("t.csv", b"text,class\na,b\n", &problems).unwrap_err().to_string();
    assert!(error.contains("t.csv has no column `label`, only text, class"), "{error}");
    let error = read(Path::new("/nowhere/t.csv"), &fields(), &problems).unwrap_err().to_string();
    assert!(error.contains("/nowhere/t.csv"), "{error}");
    let strict = Problems::new(Strictness::Fail);
    let error = rows("t.csv", b"text,label\na,\n", &strict).unwrap_err().to_string();
    assert!(error.contains("t.csv:2: no `label`"), "{error}");
}

#[test]
fn one_class_is_refused() {
    let row = Row { label: "x".to_owned(), text: "a".to_owned(), line: 1 };
    assert!(classes(&[row.clone(), row]).unwrap_err().to_string().contains("1 classes"));
}

fn real(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/text").join(name)
}

/// The rows of a CSV file with a column `label` and a column `text`, and what was passed over.
fn csv(content: &str) -> (Vec<Row>, String) {
    let problems = Problems::default();
    let rows = rows("t.csv", content.as_bytes(), &problems).unwrap();
    (rows, problems.to_string())
}

#[test]
fn a_stray_quote_costs_one_row_which_is_named() {
    for name in ["open_quote_600.csv", "open_quote_600_quoted.csv"] {
        let problems = Problems::default();
        let rows = read(&real(name), &fields(), &problems).unwrap();
        assert_eq!((rows.len(), problems.count()), (599, 1), "{name}: {problems}");
        assert!(
            problems.to_string().contains(&format!("{name}:302: the quote that opens field 2")),
            "{problems}"
        );
        assert_eq!((rows[299].line, rows[300].line, rows[300].label.as_str()), (301, 303, "Game"));
        let error = read(&real(name), &fields(), &Problems::new(Strictness::Fail)).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}:302: the quote")), "{error}");
    }
}

/// At any place, also where little is left to compare with, and in any column.
#[test]
fn a_stray_quote_anywhere_loses_nothing_more() {
    let good = |at: usize| format!("{},word {}\n", ["Game", "Chat", "Mail"][at % 3], at);
    for count in [4, 30] {
        for at in 0..count {
            let mut content = "label,text\n".to_owned();
            (0..count).for_each(|row| {
                content += &if row == at { good(row).replace(',', ",\"") } else { good(row) }
            });
            let (rows, problems) = csv(&content);
            assert_eq!(rows.len(), count - 1, "{at} of {count}: {problems}");
            assert!(
                problems.contains(&format!("t.csv:{}: the quote", at + 2)),
                "{at} of {count}: {problems}"
            );
        }
    }
    // In the first column, in front of the class.
    let (rows, problems) = csv("label,text\nGame,a\n\"Chat,b\nGame,c\nChat,d\n");
    assert_eq!(rows.iter().map(|row| row.text.as_str()).collect::<Vec<_>>(), ["a", "c", "d"], "{problems}");
    // All fields are quoted.
    let (rows, problems) = csv("label,text\n\"A\",\"a\"\n\"B\",\"b\n\"A\",\"c\"\n\"B\",\"d, e\"\n");
    assert_eq!(
        rows.iter().map(|row| row.text.as_str()).collect::<Vec<_>>(),
        ["a", "c", "d, e"],
        "{problems}"
    );
    assert!(
        problems.starts_with("1 samples were passed over:\n") && problems.contains("t.csv:3: the quote"),
        "{problems}"
    );
}

/// What closes the field is where another one begins, so the line is a row, of whatever class.
#[test]
fn a_class_that_occurs_once_is_not_lost_behind_a_stray_quote() {
    let (rows, problems) = csv("label,text\nA,\"a\"\nB,\"b\nRare,\"c\"\nA,\"d\"\nB,\"e\"\n");
    let labels: Vec<_> = rows.iter().map(|row| row.label.as_str()).collect();
    assert_eq!(labels, ["A", "Rare", "A", "B"], "{problems}");
    assert!(problems.contains("t.csv:3: the quote"), "{problems}");
}

/// Texts of several lines, one of which does not close: the next row is found by how it begins.
#[test]
fn the_row_after_a_text_of_several_lines_that_does_not_close_is_read() {
    let letter = "one\ntwo, or three\nfour\nfive";
    let with = |row: &dyn Fn(&str, bool) -> String, header: &str| {
        let rows: Vec<_> =
            ["A", "B", "A", "C", "B"].iter().zip(0..).map(|(class, n)| row(class, n == 2)).collect();
        let (rows, problems) = csv(&format!("{header}\n{}\n", rows.join("\n")));
        let classes: Vec<_> = rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(classes, ["A", "B", "C", "B"], "{problems}");
        assert!(rows.iter().all(|row| row.text == letter), "{rows:?}");
        assert!(problems.contains("3 lines after it are lost with it"), "{problems}");
    };
    let close = |open: bool| if open { "" } else { "\"" };
    with(&|class, open| format!("\"{letter}{},{class}", close(open)), "text,label");
    with(&|class, open| format!("\"{class}\",\"{letter}{}", close(open)), "label,text");
    let (rows, problems) = csv(&format!("label,text\nA,x\nB,x\nA,\"{letter}\nB,\"{letter}\"\n"));
    assert_eq!((rows.len(), rows[2].text.as_str()), (3, letter), "{problems}");
}

/// A quote in the middle of a text opens no row.
#[test]
fn words_in_quotes_within_a_text_are_no_class() {
    let (rows, _) = csv("label,text\nA,x\nB,x\nA,\"one\nhe said,\"two\" and went\"\nB,y\n");
    assert!(rows.iter().all(|row| row.label == "A" || row.label == "B"), "{rows:?}");
    assert_eq!(rows.last().unwrap().text, "y");
}

/// Every line has one: each costs its own row, and time grows with the file only.
#[test]
fn many_stray_quotes_are_counted() {
    let content = format!("label,text\nA,a\nB,b\n{}", "A,\"c\n".repeat(20_000));
    let problems = Problems::default();
    let rows = rows("t.csv", content.as_bytes(), &problems).unwrap();
    assert_eq!((rows.len(), problems.count()), (2, 20_000));
}

#[test]
fn two_stray_quotes_that_make_a_whole_are_found() {
    let content = "label,text\nA,a\nB,\"b\nA,c\nB,d\nA,e\nB,f\"\nA,g\n";
    let (rows, problems) = csv(content);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 4, 5, 6, 7, 8], "{problems}");
    assert!(
        problems.contains("t.csv:3: the quote that opens field 2 does not close where it should"),
        "{problems}"
    );
}

/// Most of the file is between them: its classes are not those of the few other rows.
#[test]
fn two_stray_quotes_far_from_each_other_are_found() {
    let mut content = "label,text\nA,\"first\n".to_owned();
    (0..40).for_each(|row| content += &format!("{},word\n", ["A", "B", "C", "D", "E"][row % 5]));
    content += "E,last\"\nA,after\n";
    let (rows, problems) = csv(&content);
    assert_eq!((rows.len(), rows[0].line), (42, 3), "{problems}");
    assert_eq!(problems.lines().count(), 2, "{problems}");
}

#[test]
fn fields_of_several_lines_are_texts() {
    let letter = "Dear A,\nthank you, and goodbye.\n\nPS: a, b,\nB, too";
    let poem = "Hey, you\nHey, you\nHey, you\nHey, you";
    let quote = "the file had\nA,one\nB,two\nbut that was all\nof it, friends\nand more\n";
    let mut content = "label,text\nA,plain\nB,plain\n".to_owned();
    for text in [letter, poem, quote] {
        content += &format!("A,\"{}\"\n", text.replace('"', "\"\""));
    }
    let (rows, problems) = csv(&content);
    assert_eq!(problems, "");
    assert_eq!(
        rows.iter().map(|row| row.text.as_str()).collect::<Vec<_>>(),
        ["plain", "plain", letter, poem, quote]
    );
    // Nothing else is in the file.
    let (rows, problems) = csv(&format!("label,text\nA,\"{poem}\"\nB,\"{poem}\"\n"));
    assert_eq!((rows.len(), problems.as_str()), (2, ""));
    // Quotes within a text that should have been doubled: as other readers, the text is kept.
    let (rows, problems) =
        csv("label,text\nA,\"he said \"hi\" to me\"\nB,\"one\nline \"two\" of it\"\nB,c\n");
    assert_eq!((rows.len(), problems.as_str()), (3, ""));
    assert_eq!(rows[0].text, "he said hi\" to me\"");
}

#[test]
fn a_file_that_is_cut_off_within_a_text_loses_that_text() {
    let (rows, problems) = csv("label,text\nA,a\nB,b\nA,\"a letter,\nwith some lines\nof words, and no");
    assert_eq!(rows.len(), 2);
    assert!(
        problems.contains("t.csv:4: the quote that opens field 2 never closes; 2 lines after it"),
        "{problems}"
    );
    let (rows, problems) = csv("label,text\nA,a\nB,b\nA,\"a");
    assert_eq!(rows.len(), 2);
    assert!(problems.contains("t.csv:4: the quote that opens field 2 never closes"), "{problems}");
    let error =
        parse(Path::new("t.csv"), b"label,\"text\nA,a\n", &fields(), &Problems::default()).unwrap_err();
    assert!(error.to_string().contains("t.csv:1: a quote of the header"), "{error}");
    let header =
        |bytes| parse(Path::new("t.csv"), bytes, &fields(), &Problems::default()).unwrap_err().to_string();
    assert!(header(b"label,text,text\nA,a,b\n").contains("two columns `text`"));
    assert!(header(b"label;text\nA;a\n").contains("only label;text: columns are separated by commas"));
    let error = parse(Path::new("t.csv"), b"\n", &fields(), &Problems::default()).unwrap_err();
    assert!(error.to_string().contains("t.csv is empty"), "{error}");
}

#[test]
fn byte_order_marks_are_no_part_of_a_name() {
    let wide = |text: &str| -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    };
    let json = "{\"label\": \"x\", \"text\": \"é\"}\n";
    let table = "label,text\r\nx,é\r\n";
    for (name, text) in [("t.jsonl", json), ("t.csv", table), ("t.JSONL", json)] {
        for content in [format!("\u{feff}{text}").into_bytes(), text.as_bytes().to_vec(), wide(text)] {
            let problems = Problems::default();
            let read = rows(name, &content, &problems).unwrap();
            assert_eq!((read[0].label.as_str(), read[0].text.as_str()), ("x", "é"), "{name}: {problems}");
        }
    }
}

#[test]
fn other_json_says_what_it_is() {
    let error = read(&real("train_array.json"), &fields(), &Problems::default()).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("train_array.json: it is a JSON array, not an object per line"), "{error}");
    let problems = Problems::default();
    let rows = read(&real("train_bool.jsonl"), &fields(), &problems).unwrap();
    assert_eq!((rows.len(), problems.count()), (0, 60));
    assert!(
        problems.to_string().contains("train_bool.jsonl:1: `label` is false, neither a text nor a number"),
        "{problems}"
    );
}
