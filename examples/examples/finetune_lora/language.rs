//! Two small languages to write texts in: the same animals and the same grammar in both, but they do other things.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a text is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// Pre-training: animals on a farm.
    Farm,
    /// Fine-tuning: the same animals at sea.
    Sea,
}

/// Nouns of both.
const ANIMALS: [&str; 8] = ["fox", "hen", "cat", "owl", "goat", "mouse", "horse", "duck"];

struct Words {
    adjectives: [&'static str; 5],
    verbs: [&'static str; 5],
    places: [&'static str; 5],
}

impl Language {
    fn words(self) -> Words {
        match self {
            Language::Farm => Words {
                adjectives: ["red", "old", "quick", "small", "brown"],
                verbs: ["sees", "follows", "likes", "hears", "meets"],
                places: ["near the barn", "in the field", "by the gate", "under a tree", "on the hill"],
            },
            Language::Sea => Words {
                adjectives: ["wet", "brave", "salty", "lost", "proud"],
                verbs: ["rescues", "paints", "steers", "feeds", "calls"],
                places: ["off the coast", "below deck", "at the mast", "in a storm", "behind the reef"],
            },
        }
    }

    /// Sentences, one a line, of about `length` bytes. Which animal an animal meets depends on the adjective and the
    /// verb: there is something to learn besides spelling.
    pub(crate) fn write(self, length: usize, seed: u64) -> String {
        let words = self.words();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut pick = |n: usize| (random.next_u32() as usize) % n;
        let mut text = String::with_capacity(length + 80);
        while text.len() < length {
            let (who, adjective, verb, place) = (pick(8), pick(5), pick(5), pick(5));
            let whom = (who + 1 + (adjective + 2 * verb) % 7) % 8;
            let (adjective, verb, place) =
                (words.adjectives[adjective], words.verbs[verb], words.places[place]);
            text.push_str(&format!(
                "the {adjective} {} {verb} the {} {place}.\n",
                ANIMALS[who], ANIMALS[whom]
            ));
        }
        text
    }
}
