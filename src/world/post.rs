//! Posts to be summarised: somebody wants something, tried something, and something is in the way.
//!
//! A post says which topic it is about, what is to be done with what, what was tried and what the trouble is; beside
//! that where the writer works, and an aside that does not matter, which may name another topic or another object.
//! It ends with a request. Five words matter ([`Facts`]).

use std::collections::BTreeMap;

use super::{
    generated::split_combinations,
    lexicon::{COMBINATIONS, OBJECTS, PROPERTIES, Slot, Subject, TOPICS},
    question::Split,
    style::Confusions,
};
use crate::random::{Draws, Stream};

/// Posts about each combination of topic, verb and object.
const POSTS_PER_COMBINATION: usize = 5;

/// What a post asks for at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// A way to do it.
    Way,
    /// The reason why it fails.
    Reason,
    /// Help of any kind.
    Help,
}

impl Request {
    /// All requests.
    pub const ALL: [Self; 3] = [Self::Way, Self::Reason, Self::Help];

    const fn text(self) -> &'static str {
        match self {
            Self::Way => "how do i do it ?",
            Self::Reason => "why does it fail ?",
            Self::Help => "any help is welcome .",
        }
    }
}

/// The five words of a post that matter, as indices into their lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Facts {
    pub(super) subject: Subject,
    /// Which tool was tried: the topic's tool or its alternative.
    pub(super) tried: usize,
    /// What is the matter with the object.
    pub(super) property: usize,
}

impl Facts {
    /// The index of the right word for `slot`.
    pub(super) fn right(self, slot: Slot) -> usize {
        match slot {
            Slot::Tried => self.tried,
            Slot::Property => self.property,
            slot => self.subject.right(slot),
        }
    }

    /// The right word for `slot`.
    pub(super) fn word(self, slot: Slot) -> &'static str {
        slot.words()[self.right(slot)]
    }
}

/// One post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Number of the post.
    pub id: u32,
    /// Words separated by single spaces, from `post :` to `TL;DR:`.
    pub text: String,
    /// What it asks for.
    pub request: Request,
    /// The part of the posts it belongs to: that of its topic, verb and object.
    pub split: Split,
    pub(super) facts: Facts,
    /// Where the writer works.
    pub(super) place: &'static str,
    /// The sentence that does not matter.
    pub(super) aside: String,
}

/// Where somebody uses something.
pub(super) const PLACES: [&str; 3] = ["home", "work", "school"];

/// Sentences that do not matter.
pub(super) const ASIDES: [&str; 4] = [
    "my friend likes {topic} .",
    "my boss asks for the {object} .",
    "my cat sleeps here .",
    "it rains all day .",
];

/// The posts of a world; everything in them follows from its seed.
#[derive(Debug, Clone)]
pub struct Posts {
    posts: Vec<Post>,
    by_text: BTreeMap<String, u32>,
    pub(super) confusions: Confusions,
}

impl Posts {
    /// Makes the posts of the world of `seed`, which splits topics, verbs and objects as its questions.
    pub fn new(seed: u64) -> Self {
        let world = Stream::new(seed, "embedded world");
        let stream = Stream::new(seed, "embedded posts");
        let splits = split_combinations(&world);
        let posts: Vec<Post> = (0..COMBINATIONS * POSTS_PER_COMBINATION)
            .map(|id| {
                let combination = id / POSTS_PER_COMBINATION;
                let subject = Subject::from_index(combination);
                write(id, subject, splits[combination], &mut stream.at(id as u64))
            })
            .collect();
        Self {
            by_text: posts
                .iter()
                .map(|post| (post.text.clone(), post.id))
                .collect(),
            posts,
            confusions: Confusions::draw(&world.child("confusions")),
        }
    }

    /// The posts of a split, by id.
    pub fn of(&self, split: Split) -> Vec<Post> {
        let posts = self.posts.iter().filter(|post| post.split == split);
        posts.cloned().collect()
    }

    /// Finds a post by its id.
    pub fn post(&self, id: u32) -> Option<&Post> {
        self.posts.get(id as usize)
    }

    /// Finds a post by its text; white space does not count.
    pub fn find(&self, text: &str) -> Option<&Post> {
        let words: Vec<&str> = text.split_whitespace().collect();
        self.post(*self.by_text.get(&words.join(" "))?)
    }
}

fn write(id: usize, subject: Subject, split: Split, draws: &mut Draws) -> Post {
    let other = |right: usize, count: usize, draws: &mut Draws| {
        (right + 1 + draws.below(count - 1)) % count
    };
    let facts = Facts {
        subject,
        // Tools stand first, then the alternatives in the same order.
        tried: subject.topic + TOPICS.len() * draws.below(2),
        property: draws.below(PROPERTIES.len()),
    };
    let distraction = Subject {
        topic: other(subject.topic, TOPICS.len(), draws),
        object: other(subject.object, OBJECTS.len(), draws),
        ..subject
    };
    let aside: Vec<&str> = ASIDES[draws.below(ASIDES.len())]
        .split(' ')
        .map(|word| Slot::from_template(word).map_or(word, |slot| distraction.word(slot)))
        .collect();
    let aside = aside.join(" ");
    let place = PLACES[draws.below(PLACES.len())];
    let wants = ["want", "need", "have"][draws.below(3)];
    let stays = ["is", "stays"][draws.below(2)];
    let request = Request::ALL[draws.below(Request::ALL.len())];
    let word = |slot| facts.word(slot);
    let mut sentences = vec![
        format!("i use {} at {place} .", word(Slot::Topic)),
        format!(
            "i {wants} to {} my {} .",
            word(Slot::Verb),
            word(Slot::Object)
        ),
        format!(
            "i tried {} but it {stays} {} .",
            word(Slot::Tried),
            word(Slot::Property)
        ),
    ];
    sentences.insert(1 + draws.below(3), aside.clone());
    Post {
        id: id as u32,
        text: format!("post : {} {} TL;DR:", sentences.join(" "), request.text()),
        request,
        split,
        facts,
        place,
        aside,
    }
}
