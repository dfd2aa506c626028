//! Names of checkpoint folders.

use std::fmt;

/// Start of the names of folders that are being written or deleted. No checkpoint has such a name.
pub(super) const TEMPORARY: &str = ".tmp-";

/// Which checkpoint of a folder: the order is the order of saving.
///
/// A run that goes back to an earlier checkpoint and trains on from there would, by steps alone, look older than the one
/// it replaces. So a save that does not go forward opens a new branch, and all later ones follow it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) branch: u32,
    pub(super) step: u64,
}

impl Name {
    /// The name of a checkpoint of `step` that is saved after `newest`.
    pub(super) fn after(newest: Option<Name>, step: u64) -> Self {
        let branch = match newest {
            None => 0,
            Some(newest) if newest.step < step => newest.branch,
            Some(newest) => newest.branch.saturating_add(1),
        };
        Self { branch, step }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("step-")?;
        let (step, branch) = text.split_once('.').unwrap_or((text, "0"));
        let name = Self { branch: branch.parse().ok()?, step: step.parse().ok()? };
        // Of several ways to write a number only ours is a name: there are no two folders for one name.
        (name.to_string().strip_prefix("step-")? == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step-{:08}", self.step)?;
        match self.branch {
            0 => Ok(()),
            branch => write!(f, ".{branch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (text, branch, step) in [
            ("step-00000000", 0, 0),
            ("step-00001234", 0, 1234),
            ("step-00001234.2", 2, 1234),
            ("step-123456789012", 0, 123_456_789_012),
        ] {
            let name = Name { branch, step };
            assert_eq!((Name::parse(text), name.to_string()), (Some(name), text.to_owned()));
        }
        for text in
            ["step-1", "step-00000001.0", "step-00000001.01", "step-+0000001", "step-x", "step-", "00000001"]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn going_back_opens_a_branch() {
        let first = Name::after(None, 500);
        let second = Name::after(Some(first), 1000);
        let back = Name::after(Some(second), 600);
        let next = Name::after(Some(back), 700);
        let again = Name::after(Some(next), 700);
        let text = [first, second, back, next, again].map(|name| name.to_string());
        assert_eq!(
            text,
            ["step-00000500", "step-00001000", "step-00000600.1", "step-00000700.1", "step-00000700.2"]
        );
        assert!([first, second, back, next, again].is_sorted());
    }
}
