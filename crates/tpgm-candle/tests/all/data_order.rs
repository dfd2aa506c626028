//! The order of training data.

#![allow(clippy::unwrap_used)]

use tpgm_candle::DataOrder;
use tpgm_candle::data::{LastBatch, Shuffle};

fn epoch(order: &mut DataOrder) -> Vec<Vec<usize>> {
    std::iter::from_fn(|| order.next_batch().map(<[usize]>::to_vec)).collect()
}

#[test]
fn an_epoch_has_every_sample_once_and_epochs_differ() {
    let mut order = DataOrder::new(101, 10, 7).unwrap();
    assert_eq!(order.batches_per_epoch(), 11);
    let (first, second) = (epoch(&mut order), epoch(&mut order));
    assert_eq!(order.epoch(), 2);
    for batches in [&first, &second] {
        assert_eq!(batches.len(), 11);
        assert_eq!(batches[10].len(), 1, "the last batch has the one sample left");
        let mut all = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..101).collect::<Vec<_>>());
    }
    assert_ne!(first, second);
    assert_ne!(first, epoch(&mut DataOrder::new(101, 10, 8).unwrap()));
    assert_eq!(first, epoch(&mut DataOrder::new(101, 10, 7).unwrap()));
}

#[test]
fn short_batches_can_be_dropped_and_shuffling_turned_off() {
    let order = DataOrder::new(7, 3, 0).unwrap().shuffle(Shuffle::Off);
    assert_eq!(epoch(&mut order.clone()), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    let mut dropped = order.last_batch(LastBatch::Drop).unwrap();
    assert_eq!(dropped.batches_per_epoch(), 2);
    assert_eq!(epoch(&mut dropped), [[0, 1, 2], [3, 4, 5]]);
    assert_eq!(epoch(&mut dropped).len(), 2);
}

#[test]
fn it_goes_on_in_the_middle_of_an_epoch() {
    for stop in 0..30 {
        let make = || DataOrder::new(23, 5, 3).unwrap();
        let mut whole = make();
        for _ in 0..stop {
            whole.next_batch();
        }
        let saved = serde_json::to_string(&whole).unwrap();
        let mut resumed = make();
        resumed.load_state(&serde_json::from_str(&saved).unwrap()).unwrap();
        for i in 0..20 {
            assert_eq!(resumed.epoch(), whole.epoch());
            assert_eq!(resumed.batch(), whole.batch());
            assert_eq!(resumed.next_batch(), whole.next_batch(), "stop {stop}, then {i}");
        }
    }
}

#[test]
fn impossible_orders_are_refused() {
    for (len, batch) in [(0, 4), (4, 0)] {
        let error = DataOrder::new(len, batch, 0).unwrap_err().to_string();
        assert!(error.contains("must be at least 1"), "{error}");
    }
    let mut large = DataOrder::new(3, 8, 0).unwrap();
    assert_eq!(epoch(&mut large).concat().len(), 3);
    let error = large.last_batch(LastBatch::Drop).unwrap_err().to_string();
    assert!(error.contains("batch_size` is 8") && error.contains("at most the number of samples"), "{error}");
}

#[test]
fn an_order_of_other_data_is_refused() {
    let saved = DataOrder::new(100, 10, 1).unwrap();
    let refused = |mut now: DataOrder| match now.load_state(&saved).unwrap_err() {
        tpgm_candle::data::Error::DataOrder { what, saved, now } => (what, saved, now),
        other => panic!("{other}"),
    };
    assert_eq!(refused(DataOrder::new(101, 10, 1).unwrap()), ("a number of samples of", 100, 101));
    assert_eq!(refused(DataOrder::new(100, 20, 1).unwrap()), ("a batch size of", 10, 20));
    assert_eq!(refused(DataOrder::new(100, 10, 2).unwrap()), ("the seed", 1, 2));
}

#[test]
fn a_saved_order_is_checked_when_it_is_read() {
    let json = serde_json::to_string(&DataOrder::new(100, 10, 1).unwrap()).unwrap();
    for (from, to, problem) in [
        (r#""position":0"#, r#""position":7"#, "no batch begins at sample 7 of 100"),
        (r#""position":0"#, r#""position":18446744073709551615"#, "no batch begins at"),
        (r#""batch_size":10"#, r#""batch_size":0"#, "at least 1"),
        (r#""len":100"#, r#""len":0"#, "at least 1"),
        (r#""epoch":0"#, r#""epoch":18446744073709551615"#, "beyond every run"),
    ] {
        assert!(json.contains(from), "{json}");
        let error = serde_json::from_str::<DataOrder>(&json.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn an_order_that_was_damaged_is_refused_by_the_data_that_are_there() {
    let mut order = DataOrder::new(100, 10, 1).unwrap();
    order.next_batch().unwrap();
    let json = serde_json::to_string(&order).unwrap();
    let mut here = DataOrder::new(7, 10, 1).unwrap();
    let before = serde_json::to_string(&here).unwrap();
    for (from, to) in [
        (r#""len":100"#, r#""len":100"#),
        // So many samples that the order of one epoch takes more memory than there is: they are only compared.
        (r#""len":100"#, r#""len":18446744073709551615"#),
        (r#""batch_size":10"#, r#""batch_size":5"#),
        (r#""seed":1"#, r#""seed":2"#),
    ] {
        let saved = serde_json::from_str(&json.replace(from, to)).unwrap();
        let error = here.load_state(&saved).unwrap_err().to_string();
        assert!(error.contains("but this run has"), "{error}");
        assert_eq!(serde_json::to_string(&here).unwrap(), before);
    }
    assert_eq!(here.next_batch().unwrap().len(), 7);
}
