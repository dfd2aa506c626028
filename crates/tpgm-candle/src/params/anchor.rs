//! Where displacements are measured from.

use tpgm_core::Group;

use crate::files::AnchorData;

/// Where the displacement of a parameter is measured from.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// Its pre-trained value.
    Pretrained(AnchorData),
    /// Zero: LoRA factors. Nothing is stored.
    Zero,
    /// None: a new head. Constraints leave it alone.
    None,
}

impl Anchor {
    /// The group that tells `tpgm-core` of an anchor other than the pre-trained one.
    pub(super) fn group(&self, name: &str) -> Option<Group> {
        match self {
            Anchor::Pretrained(_) => None,
            Anchor::Zero => Some(Group::new(name).zero_anchor()),
            Anchor::None => Some(Group::new(name).no_anchor()),
        }
    }
}
