//! The list that holds now, and how each worker comes by it.
//!
//! A worker keeps the list that it has and looks at a number between bursts; only when that has
//! changed does it take the new one. Whoever replaces a list keeps the old one until no worker has
//! it, so that none of them frees a hundred megabytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::List;

/// The list that holds now.
#[derive(Debug, Default)]
pub struct Current {
    list: Mutex<Arc<List>>,
    epoch: AtomicU64,
}

impl Current {
    pub fn new(list: List) -> Arc<Self> {
        Arc::new(Self { list: Mutex::new(Arc::new(list)), epoch: AtomicU64::new(0) })
    }

    /// The list.
    pub fn get(&self) -> Arc<List> {
        Arc::clone(&self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another list in its place, on which the counts of the old one go on; returns that.
    pub fn replace(&self, list: List) -> Arc<List> {
        list.count_on(&self.get());
        let mut held = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *held, Arc::new(list));
        self.epoch.fetch_add(1, Ordering::Release);
        old
    }
}

/// One worker's sight of it.
#[derive(Debug)]
pub struct View {
    current: Arc<Current>,
    list: Arc<List>,
    epoch: u64,
}

impl View {
    pub fn new(current: Arc<Current>) -> Self {
        let epoch = current.epoch.load(Ordering::Acquire);
        let list = current.get();
        Self { current, list, epoch }
    }

    /// Takes a new list if there is one.
    #[inline]
    pub fn refresh(&mut self) {
        if self.current.epoch.load(Ordering::Relaxed) != self.epoch {
            self.change();
        }
    }

    #[cold]
    fn change(&mut self) {
        // Not now if somebody holds it: the next burst asks again.
        if let Ok(list) = self.current.list.try_lock() {
            self.epoch = self.current.epoch.load(Ordering::Acquire);
            self.list = Arc::clone(&list);
        }
    }

    pub fn list(&self) -> &List {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_a_new_list_between_bursts() {
        let list = |text: &str| List::read(text.as_bytes(), "test").unwrap().0;
        let current = Current::new(list("a.example\n"));
        let mut view = View::new(Arc::clone(&current));
        view.list().hit(view.list().find(b"a.example").unwrap());
        let old = current.replace(list("a.example\nb.example\n"));
        assert!(view.list().find(b"b.example").is_none());
        assert_eq!(Arc::strong_count(&old), 2);
        view.refresh();
        assert!(view.list().find(b"b.example").is_some());
        assert_eq!(Arc::strong_count(&old), 1, "the worker has let go of it");
        assert_eq!(view.list().hits().next(), Some(("a.example", 1)));
    }
}
