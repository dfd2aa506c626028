use super::*;
use crate::data::Strictness;

/// A file that begins as a PNG image.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

fn tree(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    folder
}

fn source(folder: &tempfile::TempDir) -> Source {
    Source::new(folder.path(), None).unwrap()
}

fn training(folder: &tempfile::TempDir) -> Result<ImageList> {
    ImageList::training(&source(folder), &Problems::default())
}

fn test(folder: &tempfile::TempDir, classes: &[String]) -> Result<ImageList> {
    ImageList::test(&source(folder), classes, &Problems::default())
}

fn list_file(path: &Path, content: &str) -> Result<ImageList> {
    fs::write(path, content).unwrap();
    ImageList::training(&Source::new(path, None).unwrap(), &Problems::default())
}

fn real(name: &str) -> Source {
    let sets = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/image/sets");
    Source::new(&sets.join(name), None).unwrap()
}

#[test]
fn folders_are_classes_sorted_by_name() {
    let folder = tree(&["n02/b.JPEG", "n02/a.png", "n01/c.jpg", "n01/.d.jpg"]);
    let list = training(&folder).unwrap();
    assert_eq!(list.classes(), ["n01", "n02"]);
    let names: Vec<_> =
        (0..list.len()).map(|at| list.path(at).file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(
        (names.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), list.labels()),
        (["c.jpg", "a.png", "b.JPEG"].as_slice(), [0, 1, 1].as_slice())
    );
    assert_eq!(list.select(&[2, 0]).labels(), [1, 0]);
}

#[test]
fn what_is_not_read_is_named_and_images_are_known_by_their_begin() {
    let folder = tree(&[
        "a/b.jpg",
        "a/notes.txt",
        "a/more/c.jpg",
        "a/more/d.jpg",
        "b/c.jpg",
        "e.jpg",
        "read.me",
        ".f/g.jpg",
    ]);
    for name in ["a/none", "a/other.dat"] {
        fs::write(folder.path().join(name), PNG).unwrap();
    }
    let problems = Problems::default();
    let list = ImageList::training(&source(&folder), &problems).unwrap();
    assert_eq!((list.classes(), list.len()), (["a".to_owned(), "b".to_owned()].as_slice(), 4));
    assert_eq!(problems.count(), 4);
    let text = problems.to_string();
    for part in [
        "a/notes.txt: is no JPEG, PNG, WebP, BMP, GIF or TIFF image",
        "a/more: is a folder in the folder of a class: the 2 files in it are not read",
        "e.jpg: is in no folder of a class",
        ".f: is a hidden folder",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let strict = ImageList::training(&source(&folder), &Problems::new(Strictness::Fail)).unwrap_err();
    assert!(strict.to_string().contains("is a hidden folder"), "{strict}");
}

#[test]
fn images_of_all_endings_are_read() {
    let problems = Problems::default();
    let list = ImageList::training(&real("ends"), &problems).unwrap();
    assert_eq!((list.len(), problems.count()), (11 + 4 + 4, 0), "{problems}");
    for at in 0..list.len() {
        crate::data::images::decode(&fs::read(list.path(at)).unwrap()).unwrap();
    }
    let list = ImageList::training(&real("only_bmp"), &problems).unwrap();
    assert_eq!((list.len(), list.classes().len(), problems.count()), (24, 3, 0));
}

#[test]
fn a_folder_without_images_is_no_class() {
    let error = |folder: &tempfile::TempDir| training(folder).unwrap_err().to_string();
    let empty = tree(&["a/b.jpg", "b/c.jpg", "c/d.txt"]);
    assert!(error(&empty).contains("c has no images, but each folder is a class"), "{}", error(&empty));
    for name in ["__MACOSX/._a.jpg", "@eaDir/a.jpg"] {
        let other = tree(&["a/b.jpg", "b/c.jpg", name]);
        let folder = name.split('/').next().unwrap();
        assert!(error(&other).contains(&format!("{folder}: a folder like this")), "{}", error(&other));
    }
    // A test set is held to the same.
    let classes = ["a", "b", "c"].map(str::to_owned);
    assert!(test(&empty, &classes).unwrap_err().to_string().contains("c has no images"));
}

#[test]
fn a_test_set_of_some_classes_knows_which_can_occur() {
    let classes = ["n01", "n02", "n07", "n09"].map(str::to_owned);
    let list = test(&tree(&["n07/a.jpg", "n02/b.jpg"]), &classes).unwrap();
    assert_eq!((list.labels(), list.possible()), ([1, 2].as_slice(), Some([1, 2].as_slice())));
    let numbered = tree(&["0/a.jpg", "1/a.jpg", "10/a.jpg", "2/a.jpg", "3/a.jpg"]);
    let eleven: Vec<_> = (0..11).map(|class| format!("n{class:02}")).collect();
    let list = test(&numbered, &eleven).unwrap();
    assert_eq!((list.labels(), list.numbered()), ([0, 1, 10, 2, 3].as_slice(), true));
    let error = test(&numbered, &classes).unwrap_err().to_string();
    assert!(
        error.contains("folder `10` is not one") && error.contains("numbers are their positions"),
        "{error}"
    );
    let error = test(&tree(&["n03/a.jpg"]), &classes).unwrap_err().to_string();
    assert!(error.contains("folder `n03` is not one") && error.contains("`n01`, `n02`"), "{error}");
}

#[test]
fn numbers_are_names_where_a_class_has_one() {
    let list = ImageList::training(&real("ratings_train"), &Problems::default()).unwrap();
    assert_eq!((list.classes().join(" "), list.len()), ("1 2 4 5".to_owned(), 32));
    let error = ImageList::test(&real("ratings_test"), list.classes(), &Problems::default()).unwrap_err();
    assert!(error.to_string().contains("folder `3` is not one of the training set's classes"), "{error}");
    // The ones that are there are names; and a set of which none is there is no set of positions.
    let some = test(&tree(&["1/a.jpg", "4/b.jpg"]), list.classes()).unwrap();
    assert_eq!((some.labels(), some.numbered()), ([0, 2].as_slice(), false));
    for folders in [["0/a.jpg", "3/b.jpg"], ["3/a.jpg", "3/b.jpg"], ["4/a.jpg", "x/b.jpg"]] {
        assert!(test(&tree(&folders), list.classes()).is_err(), "{folders:?}");
    }
    // Classes of a list are numbers, in the order of numbers.
    let twelve: Vec<_> = (0..12).map(|class| class.to_string()).collect();
    assert_eq!(test(&tree(&["10/a.jpg", "2/b.jpg"]), &twelve).unwrap().labels(), [10, 2]);
}

#[test]
fn list_files_have_paths_with_spaces_and_classes() {
    let folder = tree(&[]);
    let path = folder.path().join("real_train.txt");
    let list = list_file(&path, "\u{feff}real/alarm clock/a.jpg 0\n\nreal/zebra/b.jpg 2\r\n").unwrap();
    assert_eq!((list.classes().len(), list.labels()), (3, [0, 2].as_slice()));
    assert_eq!(list.path(0), folder.path().join("real/alarm clock/a.jpg"));
    assert_eq!(list.empty_classes(), ["1"]);
    assert!(list.possible().is_none());
    let other = Source::new(&path, Some(Path::new("/images"))).unwrap();
    let test = |classes| ImageList::test(&other, classes, &Problems::default());
    assert_eq!(test(list.classes()).unwrap().path(1), Path::new("/images/real/zebra/b.jpg"));
    assert!(test(&list.classes()[..2]).unwrap_err().to_string().contains("class 2 of"));
    let error = |content| list_file(&path, content).unwrap_err().to_string();
    let not_a_class = error("a.jpg 0\nb.jpg one\n");
    assert!(not_a_class.contains("real_train.txt:2: expected `path class`"), "{not_a_class}");
    let from_1 = error("a.jpg 1\nb.jpg 2\n");
    assert!(from_1.contains("class 0 has no images") && from_1.contains("subtract 1"), "{from_1}");
    assert!(error("a.jpg 0\nb.jpg 4294967295\n").contains("class 4294967295 of"));
    fs::write(&path, b"a\xff.jpg 0\n").unwrap();
    let error = ImageList::training(&Source::new(&path, None).unwrap(), &Problems::default()).unwrap_err();
    assert!(format!("{error:#}").contains("real_train.txt: is not a text in UTF-8"), "{error:#}");
}

#[test]
fn a_digest_tells_sets_apart() {
    let folder = tree(&["a/b.jpg", "b/c.jpg"]);
    let digest = || training(&folder).unwrap().digest();
    let before = digest();
    assert!(before.to_string().starts_with("2 images, checksum "), "{before}");
    assert_eq!(before, digest());
    fs::write(folder.path().join("a/b.jpg"), "1").unwrap();
    let one = digest();
    fs::write(folder.path().join("a/b.jpg"), "2").unwrap();
    assert!(before != one && one != digest());
    fs::rename(folder.path().join("b/c.jpg"), folder.path().join("b/d.jpg")).unwrap();
    assert_ne!(one, digest());
}

#[test]
fn nothing_to_read_is_an_error() {
    assert!(Source::new(Path::new("/nowhere"), None).unwrap_err().to_string().contains("/nowhere"));
    let error = training(&tree(&["a/b.jpg"])).unwrap_err().to_string();
    assert!(error.contains("has 1 classes"), "{error}");
    let error = training(&tree(&["a.jpg"])).unwrap_err().to_string();
    assert!(error.contains("has 0 classes"), "{error}");
    let folder = tree(&[]);
    assert!(list_file(&folder.path().join("l"), "").unwrap_err().to_string().contains("has 0 classes"));
}
