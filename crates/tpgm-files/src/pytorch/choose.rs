//! Which of a file's dictionaries are the weights.

use std::collections::{BTreeMap, HashSet};

use super::pickle::{Id, Object, Pickle};
use super::tensor::is_tensor;

/// Keys that training scripts keep weights under.
const WEIGHTS: [&str; 17] = [
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "model_dict",
    "model_weights",
    "module",
    "net",
    "net_state_dict",
    "net_dict",
    "network",
    "params",
    "weights",
    "state",
    "checkpoint",
    "student",
    "online_network",
];

/// Keys of moving averages and teachers: other weights of the same model, so taken only if there are no plain ones.
const AVERAGES: [&str; 14] = [
    "state_dict_ema",
    "model_ema",
    "model_state_dict_ema",
    "model_ema_state_dict",
    "ema",
    "ema_model",
    "ema_state_dict",
    "ema_model_state_dict",
    "module_ema",
    "net_ema",
    "params_ema",
    "shadow_params",
    "teacher",
    "target_network",
];

/// Parts of keys of what is no model, whatever tensors it has.
const STATE: [&str; 8] = ["optim", "sched", "scaler", "rng", "random", "loss", "callback", "metric"];

/// How deep weights are looked for: `file["state"]["model"]["module"]`.
const DEPTH: usize = 3;

/// Keys named in a message.
const SHOWN: usize = 8;

/// The weights of a file.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) key: Option<String>,
    pub(super) others: Vec<String>,
    pub(super) tensors: BTreeMap<&'a str, Id>,
}

/// A dictionary with tensors.
struct Candidate<'a> {
    path: Vec<&'a str>,
    tensors: BTreeMap<&'a str, Id>,
}

impl Candidate<'_> {
    fn key(&self) -> String {
        self.path.join(".")
    }

    /// What a message calls it.
    fn describe(&self) -> String {
        match (self.path.len(), self.tensors.len()) {
            (0, count) => format!("the top ({count})"),
            (_, count) => format!("`{}` ({count})", self.key()),
        }
    }

    fn is_known(&self) -> bool {
        self.path.iter().all(|key| WEIGHTS.contains(key) || AVERAGES.contains(key))
    }

    fn is_average(&self) -> bool {
        self.path.iter().any(|key| AVERAGES.contains(key))
    }

    fn is_state(&self) -> bool {
        let of_state = |key: &&str| {
            let key = key.to_ascii_lowercase();
            STATE.iter().any(|part| key.contains(part))
        };
        self.path.iter().any(of_state)
    }

    /// Names of a model's tensors have dots; an epoch and an accuracy have none.
    fn looks_like_weights(&self) -> bool {
        self.tensors.keys().any(|name| name.contains('.'))
    }
}

/// The weights of a pickle, under `key` if one is named. The error is a problem of the file.
pub(super) fn choose<'a>(pickle: &'a Pickle, key: Option<&str>) -> Result<Choice<'a>, String> {
    let mut candidates = vec![];
    collect(pickle, pickle.root, &mut vec![], &mut HashSet::new(), &mut candidates);
    let chosen = match key {
        Some(key) => return named(pickle, key, candidates),
        None => automatic(&candidates),
    };
    let Some(chosen) = chosen else { return Err(undecided(pickle, &candidates)) };
    let Candidate { path, tensors } = candidates.swap_remove(chosen);
    let key = (!path.is_empty()).then(|| path.join("."));
    Ok(Choice { key, others: other_keys(&candidates), tensors })
}

/// All dictionaries with tensors, from the top down. A dictionary that is there twice counts once.
fn collect<'a>(
    pickle: &'a Pickle,
    id: Id,
    path: &mut Vec<&'a str>,
    seen: &mut HashSet<Id>,
    found: &mut Vec<Candidate<'a>>,
) {
    let Some(entries) = pickle.dict(id) else { return };
    if !seen.insert(id) {
        return;
    }
    let tensors = tensors_of(pickle, entries);
    if !tensors.is_empty() {
        found.push(Candidate { path: path.clone(), tensors });
    }
    if path.len() == DEPTH {
        return;
    }
    for &(key, value) in entries {
        // Optimizers count their tensors; weights have names.
        if let Some(key) = pickle.text(key)
            && key.len() < 100
        {
            path.push(key);
            collect(pickle, value, path, seen, found);
            path.pop();
        }
    }
}

/// A key that is there twice has its last value, as in Python.
fn tensors_of<'a>(pickle: &'a Pickle, entries: &[(Id, Id)]) -> BTreeMap<&'a str, Id> {
    let named = entries.iter().filter_map(|&(key, value)| Some((pickle.text(key)?, value)));
    named.filter(|&(_, value)| is_tensor(pickle, value)).collect()
}

/// Which one is meant, if nobody says and it is plain.
fn automatic(candidates: &[Candidate]) -> Option<usize> {
    let those = |wanted: fn(&Candidate) -> bool| -> Vec<usize> {
        (0..candidates.len()).filter(|&i| !candidates[i].is_state() && wanted(&candidates[i])).collect()
    };
    let plain = those(|c| c.is_known() && !c.is_average() && (!c.path.is_empty() || c.looks_like_weights()));
    let averages = those(|c| c.is_known() && c.is_average());
    match (&plain[..], &averages[..], &those(|_| true)[..]) {
        ([one], ..) | ([], [one], _) => Some(*one),
        // Tensors at the top without dots: weights only where there is nothing else.
        ([], [], [one]) if candidates[*one].path.is_empty() => Some(*one),
        _ => None,
    }
}

/// What lies under `key`, of which every dot may lead deeper or belong to a key.
fn named<'a>(pickle: &'a Pickle, key: &str, candidates: Vec<Candidate<'a>>) -> Result<Choice<'a>, String> {
    fn find(pickle: &Pickle, id: Id, path: &str) -> Option<Id> {
        let entries = pickle.dict(id)?;
        let value =
            |key: &str| entries.iter().rev().find(|(k, _)| pickle.text(*k) == Some(key)).map(|(_, v)| *v);
        let deeper = || {
            path.match_indices('.').find_map(|(dot, _)| find(pickle, value(&path[..dot])?, &path[dot + 1..]))
        };
        value(path).or_else(deeper)
    }
    let tensors =
        find(pickle, pickle.root, key).and_then(|id| pickle.dict(id)).map(|dict| tensors_of(pickle, dict));
    match tensors {
        Some(tensors) if !tensors.is_empty() => {
            let others =
                candidates.into_iter().filter(|candidate| candidate.key() != key).collect::<Vec<_>>();
            Ok(Choice { key: Some(key.to_owned()), others: other_keys(&others), tensors })
        }
        _ if candidates.is_empty() => Err(undecided(pickle, &candidates)),
        _ => Err(format!("it has no tensors under the key `{key}`; tensors are under {}", list(&candidates))),
    }
}

/// Other weights; what optimizers keep is nobody's choice.
fn other_keys(candidates: &[Candidate]) -> Vec<String> {
    let mut keys: Vec<String> =
        candidates.iter().filter(|c| !c.path.is_empty() && !c.is_state()).map(Candidate::key).collect();
    keys.sort_unstable();
    keys
}

fn list(candidates: &[Candidate]) -> String {
    let shown: Vec<String> = candidates.iter().take(SHOWN).map(Candidate::describe).collect();
    match candidates.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more keys", shown.join(", ")),
    }
}

fn undecided(pickle: &Pickle, candidates: &[Candidate]) -> String {
    if !candidates.is_empty() {
        return format!(
            "it has tensors under {}, and it is not plain which of them are the weights; name their key \
             (`OpenOptions::key`, `--key`)",
            list(candidates)
        );
    }
    match whole_model(pickle) {
        Some(class) => format!(
            "it holds a whole Python object of class `{class}`, which only Python can load; there, \
             `torch.save(model.state_dict(), FILE)` saves the weights alone"
        ),
        None => "it has no tensors, neither at the top nor under a key; is it the checkpoint of a model?"
            .to_owned(),
    }
}

/// The class of the object, or of one under a key, if it is a module.
fn whole_model(pickle: &Pickle) -> Option<&str> {
    let of_class = |id: Id| {
        let Object::Call { function, args, state: Some(_) } = pickle.get(id) else { return None };
        let reconstructed = pickle.tuple(*args).and_then(|args| pickle.global(*args.first()?));
        match pickle.global(*function)? {
            "copy_reg._reconstructor" | "copyreg._reconstructor" => reconstructed,
            class => Some(class),
        }
    };
    let below = pickle.dict(pickle.root).unwrap_or_default().iter().map(|(_, value)| *value);
    [pickle.root].into_iter().chain(below).find_map(of_class)
}
