//! What a thread has said about the memory that its operations are about to use: bookkeeping for `order`.
//!
//! ```text
//!   alone         say, say, launch, launch | say, launch      with a word after a launch another one begins
//!   a group     [ say, say, launch, launch,  say, launch ]    what was said holds until the end
//! ```

use std::sync::{Arc, Weak};

/// What an operation does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Memory and what is done with it.
pub(super) type Said<M> = (Arc<M>, Access);

/// What a thread has said to use since its operation began; or more, if one before has failed. More does no
/// harm.
pub(super) struct Notes<M> {
    notes: Vec<Note<M>>,
    /// The operation has launched something. It may launch more, which uses the same; with the next note
    /// another one begins.
    has_launched: bool,
}

struct Note<M> {
    queue: u64,
    memory: Weak<M>,
    access: Access,
}

/// Notes that are kept before those of memory that is gone are dropped.
const MANY_NOTES: usize = 64;

impl<M> Notes<M> {
    pub const fn new() -> Notes<M> {
        Notes { notes: Vec::new(), has_launched: false }
    }

    /// Notes a use of `memory` on the queue with the number `queue`.
    pub fn add(&mut self, queue: u64, memory: &Arc<M>, access: Access) {
        if std::mem::take(&mut self.has_launched) {
            self.notes.clear();
        }
        let same = |note: &&mut Note<M>| note.queue == queue && note.memory.as_ptr() == Arc::as_ptr(memory);
        if let Some(note) = self.notes.iter_mut().find(same) {
            note.access = note.access.max(access);
            return;
        }
        if self.notes.len() >= MANY_NOTES {
            self.notes.retain(|note| note.memory.strong_count() > 0);
        }
        self.notes.push(Note { queue, memory: Arc::downgrade(memory), access });
    }

    /// Those of `queue`, for a launch.
    pub fn take(&mut self, queue: u64) -> Vec<Said<M>> {
        self.has_launched = true;
        let of_queue = self.notes.iter().filter(|note| note.queue == queue);
        of_queue.filter_map(|note| Some((note.memory.upgrade()?, note.access))).collect()
    }
}

/// What the operations of a group on one queue have said to use.
pub(super) struct Group<M> {
    queue: u64,
    said: Vec<Said<M>>,
    /// A graph holds some of the memory: each launch notes what is used.
    notes_each: bool,
    /// The number of the last work that was enqueued and not noted; 0 if there is none.
    last: u64,
}

/// Allocations that a forward uses: twenty or so.
const USUAL: usize = 24;

impl<M> Group<M> {
    /// Of operations on the queue with the number `queue`.
    pub fn new(queue: u64) -> Group<M> {
        Group { queue, said: Vec::with_capacity(USUAL), notes_each: false, last: 0 }
    }

    /// Its queue.
    pub fn queue(&self) -> u64 {
        self.queue
    }

    /// Whether it has been said that `memory` is used so, or written.
    pub fn has(&self, memory: &Arc<M>, access: Access) -> bool {
        self.said.iter().any(|(said, as_what)| Arc::ptr_eq(said, memory) && *as_what >= access)
    }

    /// Notes a use of `memory`, which graphs may hold.
    pub fn add(&mut self, memory: &Arc<M>, access: Access, is_in_a_graph: bool) {
        self.notes_each |= is_in_a_graph;
        match self.said.iter_mut().find(|(said, _)| Arc::ptr_eq(said, memory)) {
            Some((_, as_what)) => *as_what = access.max(*as_what),
            None => self.said.push((memory.clone(), access)),
        }
    }

    /// What the next launch has to note; none if the end of the group does.
    pub fn for_launch(&self) -> Option<Vec<Said<M>>> {
        self.notes_each.then(|| self.said.clone())
    }

    /// Remembers the number of work that has been enqueued.
    pub fn has_enqueued(&mut self, number: u64) {
        self.last = number;
    }

    /// What there is to note, and up to which number.
    pub fn end(&self) -> (&[Said<M>], u64) {
        let said = if self.last == 0 { &[] } else { self.said.as_slice() };
        (said, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, Arc, Group, Notes};

    #[test]
    fn a_launch_ends_what_was_said_before_it() {
        let (one, two) = (Arc::new(1), Arc::new(2));
        let mut notes = Notes::new();
        notes.add(0, &one, Access::Write);
        notes.add(0, &one, Access::Read);
        notes.add(7, &two, Access::Read);
        assert_eq!(notes.take(0), [(one.clone(), Access::Write)]);
        assert_eq!(notes.take(0).len(), 1, "an operation may launch several kernels");
        notes.add(0, &two, Access::Read);
        assert_eq!(notes.take(0), [(two, Access::Read)]);
        drop(one);
    }

    #[test]
    fn a_group_remembers_until_its_end() {
        let (one, two) = (Arc::new(1), Arc::new(2));
        let mut group = Group::new(0);
        group.add(&one, Access::Read, false);
        assert!(
            group.has(&one, Access::Read)
                && !group.has(&one, Access::Write)
                && !group.has(&two, Access::Read)
        );
        assert_eq!((group.for_launch(), group.end()), (None, (&[][..], 0)), "nothing was enqueued");
        group.has_enqueued(3);
        group.add(&one, Access::Write, false);
        assert!(group.has(&one, Access::Read) && group.has(&one, Access::Write));
        assert_eq!(group.end(), (&[(one.clone(), Access::Write)][..], 3));
        group.add(&two, Access::Read, true);
        let each = group.for_launch().expect("a graph holds some of it");
        assert_eq!(each, [(one, Access::Write), (two, Access::Read)]);
    }
}
