//! Files as people have them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use crate::cli::run;
use crate::common::{has, outcomes};
use crate::options::Args;

/// A file or folder of those, whose outcome is known.
fn real(name: &str) -> String {
    format!("{}/tests/real_files/image/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs the command line and returns what it has printed. Options override earlier ones, or are added to them.
fn command(out: &Path, options: &[&str]) -> (anyhow::Result<()>, String) {
    let (model, train, test) = (real("vit"), real("sets/train"), format!("id={}", real("sets/test")));
    let args =
        ["finetune_image", "--arch", "vit", "--model", &model, "--train", &train, "--held-out", &train];
    let more = ["--epochs", "1", "--methods", "fine-tuning", "--out", out.to_str().unwrap()];
    let tests = if options.contains(&"--test") { &[][..] } else { &["--test", &test][..] };
    let args = Args::try_parse_from(args.iter().chain(&more).chain(tests).chain(options)).unwrap();
    let progress = Progress::hidden();
    (run(&args, &progress, &Stop::never()), progress.lines())
}

fn fails(out: &Path, options: &[&str]) -> String {
    format!("{:#}", command(out, options).0.unwrap_err())
}

/// A copy of a set, to change.
fn copied(set: &str, to: &Path) {
    for class in fs::read_dir(real(set)).unwrap() {
        let class = class.unwrap().path();
        let folder = to.join(class.file_name().unwrap());
        fs::create_dir_all(&folder).unwrap();
        for image in fs::read_dir(&class).unwrap() {
            let image = image.unwrap().path();
            fs::copy(&image, folder.join(image.file_name().unwrap())).unwrap();
        }
    }
}

/// The same weights with other files beside them see other images.
#[test]
fn a_file_beside_the_model_says_how_images_are_prepared() {
    let out = tempfile::tempdir().unwrap();
    let weights = |model: &str, options: &[&str]| {
        let out = out.path().join("out");
        let (result, lines) = command(&out, &[&["--model", &real(model)], options].concat());
        result.unwrap();
        let run = PathBuf::from("runs/fine-tuning_lr0.00001_seed0/model.safetensors");
        (fs::read(out.join(run)).unwrap(), lines)
    };
    let (plain, lines) = weights("vit", &[]);
    has(&lines, &["no file beside the model says how", "mean [0.5, 0.5, 0.5]", "from ", "loaded "]);
    let (other, lines) = weights("vit_dino_norm", &[]);
    has(
        &lines,
        &[
            "vit_dino_norm/preprocessor_config.json says",
            "mean [0.485, 0.456, 0.406], deviation [0.229, 0.224, 0.225]",
        ],
    );
    assert!(plain != other);
    // Options say the same, or override it.
    let half = ["--mean", "0.5,0.5,0.5", "--deviation", "0.5,0.5,0.5"];
    assert!(weights("vit_dino_norm", &half).0 == plain);
    assert!(weights("vit", &["--mean", "0.485,0.456,0.406", "--deviation", "0.229,0.224,0.225"]).0 == other);
    assert!(weights("vit", &["--preprocessor", &real("vit_dino_norm/preprocessor_config.json")]).0 == other);
    let (_, lines) = weights("vit", &["--resize", "10", "--resample", "nearest", "--squash", "true"]);
    has(&lines, &["both sides scaled to 10 pixels (nearest), the middle 8 x 8 cut out"]);

    let fails = |options: &[&str]| fails(&out.path().join("bad"), options);
    has(&fails(&["--mean", "0.5"]), &["--mean has 1 numbers"]);
    has(&fails(&["--deviation", "0.5,0,0.5"]), &["the deviation is above 0"]);
    has(&fails(&["--resize", "4"]), &["--resize"]);
    has(&fails(&["--preprocessor", &real("vit/config.json")]), &["does not say how images are prepared"]);
}

/// Weights of a run of PyTorch are found, and its moving average where it is asked for.
#[test]
fn the_key_of_the_weights_can_be_named() {
    let out = tempfile::tempdir().unwrap();
    let run = |file: &str, options: &[&str]| {
        let (file, shape) = (real(file), real("vit/config.json"));
        let options = [&["--model", &file, "--config", &shape], options].concat();
        let (result, lines) = command(&out.path().join("out"), &options);
        result.map(|()| (fs::read(out.path().join("out/start.safetensors")).unwrap(), lines))
    };
    let (plain, lines) = run("vit_ema.pth", &[]).unwrap();
    has(&lines, &["vit_ema.pth: weights under `model`, not under `model_ema`"]);
    let (average, lines) = run("vit_ema.pth", &["--key", "model_ema"]).unwrap();
    has(&lines, &["weights under `model_ema`"]);
    assert!(plain != average);
    let error = format!("{:#}", run("vit_ema.pth", &["--key", "weights"]).unwrap_err());
    has(&error, &["weights", "model_ema"]);
    let [epoch, best] = ["vit_epoch.pth.tar", "vit_best_acc1.pth.tar"]
        .map(|file| run(file, &["--prefix", "module."]).unwrap().0);
    assert!(epoch == best);
}

#[test]
fn images_of_all_kinds_are_read_and_damaged_ones_are_named() {
    let out = tempfile::tempdir().unwrap();
    for set in ["sets/ends", "sets/only_bmp"] {
        let (result, lines) =
            command(out.path(), &["--train", &real(set), "--held-out", &real("sets/train")]);
        result.unwrap();
        assert!(!lines.contains("passed over"), "{lines}");
    }
    let truncated = real("sets/truncated");
    let (result, lines) = command(out.path(), &["--train", &truncated]);
    result.unwrap();
    has(&lines, &["1 samples were passed over", "apple/0.jpg: cannot be decoded: it is cut off"]);
    has(
        &fails(out.path(), &["--train", &truncated, "--strict"]),
        &["apple/0.jpg: cannot be decoded: it is cut off"],
    );
    // Where nothing can be read, the error says why.
    let folder = out.path().join("damaged");
    for class in ["apple", "banana"] {
        fs::create_dir_all(folder.join(class)).unwrap();
        for number in 0..8 {
            fs::copy(real("odd/cut_half.jpg"), folder.join(class).join(format!("{number}.jpg"))).unwrap();
        }
    }
    let folder = folder.to_str().unwrap();
    has(
        &fails(out.path(), &["--train", folder, "--held-out", folder, "--test", folder]),
        &["none of the first samples can be read", "samples were passed over", "it is cut off"],
    );
}

#[test]
fn folders_that_are_no_classes_are_named() {
    let out = tempfile::tempdir().unwrap();
    let (train, test) = (real("sets/ratings_train"), real("sets/ratings_test"));
    let ratings = ["--train", &train, "--held-out", &train, "--test", &test];
    has(
        &fails(out.path(), &ratings),
        &["ratings_test: folder `3` is not one of the training set's classes", "`1`, `2`, `4`, `5`"],
    );
    let set = out.path().join("set");
    copied("sets/train", &set);
    let train = ["--train", set.to_str().unwrap()];
    for folder in ["__MACOSX", "@eaDir", "empty"] {
        let folder = set.join(folder);
        fs::create_dir_all(&folder).unwrap();
        has(&fails(out.path(), &train), &[folder.file_name().unwrap().to_str().unwrap(), "delete it"]);
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(set.join("apple/more")).unwrap();
    fs::copy(set.join("apple/0.png"), set.join("apple/more/0.png")).unwrap();
    let (result, lines) = command(&out.path().join("out"), &train);
    result.unwrap();
    has(&lines, &["apple/more: is a folder in the folder of a class: the 1 files in it"]);
}

/// What could be a mistake is said: positions, and classes without images.
#[test]
fn the_start_says_how_classes_are_understood() {
    let out = tempfile::tempdir().unwrap();
    let test = out.path().join("numbered");
    for (position, class) in ["apple", "cherry"].into_iter().enumerate() {
        fs::create_dir_all(test.join(format!("{}", 2 * position))).unwrap();
        fs::copy(real(&format!("sets/test/{class}/0.png")), test.join(format!("{}/0.png", 2 * position)))
            .unwrap();
    }
    let (train, list) = (real("sets/train"), out.path().join("list.txt"));
    let lines = (0..3).map(|number| format!("apple/{number}.png 1\ncherry/{number}.png 2\n"));
    fs::write(&list, lines.collect::<String>()).unwrap();
    let (numbered, list) = (test.to_str().unwrap(), format!("list={}", list.display()));
    let options = ["--test", numbered, "--test", &list, "--root", &train];
    let (result, lines) = command(&out.path().join("out"), &options);
    result.unwrap();
    has(
        &lines,
        &["numbered 2 (of 2 classes) (folders are positions of classes), list 6 (none of class apple)"],
    );
    has(&fails(out.path(), &[&options[..], &["--train", &list[5..]]].concat()), &["class 0 has no images"]);
}

#[test]
fn a_run_is_not_resumed_with_other_images() {
    let out = tempfile::tempdir().unwrap();
    let (set, run) = (out.path().join("set"), out.path().join("out"));
    copied("sets/train", &set);
    let resume = ["--train", set.to_str().unwrap(), "--resume"];
    command(&run, &resume[..2]).0.unwrap();
    command(&run, &resume).0.unwrap();
    let before = outcomes(&run.join("outcomes.json")).len();
    let whole = fs::read(set.join("apple/0.png")).unwrap();
    let refused =
        || has(&fails(&run, &resume), &["training images: 24 images, checksum", "when it was begun"]);
    // Fewer images, more, and another one in the place of one.
    fs::remove_file(set.join("apple/0.png")).unwrap();
    refused();
    fs::write(set.join("apple/0.png"), &whole).unwrap();
    command(&run, &resume).0.unwrap();
    fs::write(set.join("apple/9.png"), &whole).unwrap();
    refused();
    fs::remove_file(set.join("apple/9.png")).unwrap();
    fs::copy(set.join("banana/0.png"), set.join("apple/0.png")).unwrap();
    refused();
    assert_eq!(outcomes(&run.join("outcomes.json")).len(), before);
    fs::write(set.join("apple/0.png"), &whole).unwrap();
    let other = format!("id={}", set.display());
    has(&fails(&run, &[&resume[..], &["--test", &other]].concat()), &["test images 1, id: 9 images"]);
    has(
        &fails(&run, &[&resume[..], &["--mean", "0,0,0"]].concat()),
        &["transform, mean: [0.5,0.5,0.5] when it was begun"],
    );
}
