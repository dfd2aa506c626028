//! Which model a checkpoint is of, by the names of its tensors, and what that model reads.

mod names;

use std::collections::BTreeSet;

use serde::Serialize;

use self::names::{KINDS, Kind};

/// What a tensor is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// It is read.
    Weight,
    /// It is read if the model is a classifier, unless its head is made anew.
    Head,
    /// A statistic of a batch norm, or its counter.
    Buffer,
    /// It is not read.
    Unused,
}

/// The model that a checkpoint is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    kind: &'static Kind,
    /// What all names of the model begin with.
    pub(crate) prefix: &'a str,
}

impl<'a> Found<'a> {
    /// By the tensors that every model of a kind has.
    pub(crate) fn new(names: &BTreeSet<&'a str>) -> Option<Self> {
        KINDS.iter().find_map(|kind| {
            let (first, others) = kind.signs.split_first()?;
            let prefixes = names.iter().filter_map(|name| {
                let prefix = name.strip_suffix(first)?;
                (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
            });
            let whole = |prefix: &&str| {
                others.iter().all(|other| names.contains(format!("{prefix}{other}").as_str()))
            };
            let prefix = prefixes.filter(whole).min_by_key(|prefix| prefix.len())?;
            Some(Self { kind, prefix })
        })
    }

    /// What people call the model, and whose names its checkpoint has.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.name
    }

    /// Whether the library's model looks under the prefix by itself.
    pub(crate) fn knows_prefix(&self) -> bool {
        self.kind.prefixes.contains(&self.prefix)
    }

    /// What a tensor is to the model.
    pub(crate) fn role(&self, name: &str) -> Role {
        let inner = name.strip_prefix(self.prefix);
        let is_head = |name: &str| self.kind.head.iter().any(|pattern| matches(pattern, name));
        match inner {
            Some(inner) if self.kind.reads.iter().any(|pattern| matches(pattern, inner)) => {
                if is_statistic(inner) { Role::Buffer } else { Role::Weight }
            }
            Some(inner) if is_statistic(inner) => Role::Buffer,
            // The head of a model under a prefix may stand beside it.
            _ if inner.is_some_and(is_head) || is_head(name) => Role::Head,
            _ => Role::Unused,
        }
    }

    /// Why the library's model refuses the checkpoint, whose `config.json` names this type.
    pub(crate) fn refused(&self, names: &BTreeSet<&str>, model_type: Option<&str>) -> Vec<String> {
        let full = self.kind.refuses.iter().map(|name| format!("{}{name}", self.prefix));
        let tensors = full.filter(|name| names.contains(name.as_str()));
        let mut reasons: Vec<_> =
            tensors.map(|name| format!("`{name}` changes the result and is not supported")).collect();
        let types = self.kind.model_types;
        if let Some(named) = model_type
            && !types.is_empty()
            && !types.contains(&named)
        {
            reasons.push(format!(
                "`config.json` says `{named}`, and models with these names are of type `{}`",
                types.join("`, `")
            ));
        }
        reasons
    }
}

fn is_statistic(name: &str) -> bool {
    ["running_mean", "running_var", "num_batches_tracked"]
        .iter()
        .any(|last| name.rsplit('.').next() == Some(last))
}

/// Whether a name is of a pattern: between dots, `a|b` is one of these, `#` at the end of one is a number, `*` is a weight or a bias,
/// `@` one of the four tensors of a batch norm.
fn matches(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if pattern.split('|').any(|one| is_part(one, part)) => {}
            _ => return false,
        }
    }
}

fn is_part(pattern: &str, part: &str) -> bool {
    match pattern {
        "*" => matches!(part, "weight" | "bias"),
        "@" => matches!(part, "weight" | "bias" | "running_mean" | "running_var"),
        _ => match pattern.strip_suffix('#') {
            Some(start) => part
                .strip_prefix(start)
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())),
            None => pattern == part,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_parts() {
        for (pattern, name, expected) in [
            ("layer#.#.conv1|conv2.weight", "layer4.11.conv2.weight", true),
            ("layer#.#.conv1|conv2.weight", "layer.11.conv2.weight", false),
            ("layer#.#.conv1|conv2.weight", "layer1.x.conv2.weight", false),
            ("norm.*", "norm.bias", true),
            ("norm.*", "norm.running_mean", false),
            ("bn1.@", "bn1.running_mean", true),
            ("norm.*", "norm.weight.x", false),
            ("norm.*", "norm", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_model_is_found_under_a_prefix_and_its_head_beside_it() {
        let names: BTreeSet<&str> = [
            "module.enc.conv1.weight",
            "module.enc.layer1.0.conv1.weight",
            "module.enc.bn1.num_batches_tracked",
            "module.enc.bn1.running_var",
            "module.enc.fc.0.weight",
            "fc.weight",
            "queue",
        ]
        .into();
        let found = Found::new(&names).unwrap();
        assert_eq!((found.prefix, found.knows_prefix()), ("module.enc.", false));
        let roles: Vec<Role> = names.iter().map(|name| found.role(name)).collect();
        use Role::{Buffer, Head, Unused, Weight};
        assert_eq!(roles, [Head, Buffer, Buffer, Weight, Unused, Weight, Unused]);
        assert!(Found::new(&["conv1.weight", "other"].into()).is_none());
    }
}
