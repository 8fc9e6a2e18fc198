//! A list and the file it is from, read anew on request.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Current, List, ListError, Loaded};

/// The list of a file.
#[derive(Debug)]
pub struct Blocklist {
    path: PathBuf,
    current: Arc<Current>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    loaded: Loaded,
    /// Lists that a worker may still have.
    retired: Vec<Arc<List>>,
}

impl Blocklist {
    pub fn open(path: &Path) -> Result<Self, ListError> {
        let (list, loaded) = List::open(path)?;
        let state = Mutex::new(State { loaded, retired: Vec::new() });
        Ok(Self { path: path.to_owned(), current: Current::new(list), state })
    }

    /// Reads the file anew, which takes a second for a million names, and puts what is in it in
    /// the place of the old list; that stays if the file cannot be used.
    pub fn reload(&self) -> Result<Loaded, ListError> {
        // Held throughout: of two that ask at once, the later's list stays.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, loaded) = List::open(&self.path)?;
        state.retired.push(self.current.replace(list));
        state.loaded = loaded.clone();
        Ok(loaded)
    }

    /// Frees old lists that no worker has any more.
    pub fn tidy(&self) {
        // Who reads a file anew holds it, and will not be waited for.
        if let Ok(mut state) = self.state.try_lock() {
            state.retired.retain(|list| Arc::strong_count(list) > 1);
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was in the file when it was read last.
    pub fn loaded(&self) -> Loaded {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).loaded.clone()
    }

    /// The list that holds now, with how often each of its domains was met.
    pub fn list(&self) -> Arc<List> {
        self.current.get()
    }

    pub fn current(&self) -> &Arc<Current> {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shunt::View;

    #[test]
    fn the_old_list_stays_until_a_good_one_is_there_and_is_freed_when_nobody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::fs::write(&path, "a.example\n").unwrap();
        let blocklist = Blocklist::open(&path).unwrap();
        let mut view = View::new(Arc::clone(blocklist.current()));
        std::fs::write(&path, "<html>\n").unwrap();
        assert!(blocklist.reload().is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(blocklist.reload().unwrap_err().to_string().contains("list"));
        assert_eq!((blocklist.list().len(), blocklist.loaded().domains), (1, 1));
        std::fs::write(&path, "a.example\nb.example\n").unwrap();
        assert_eq!(blocklist.reload().unwrap().domains, 2);
        blocklist.tidy();
        assert_eq!(blocklist.state.lock().unwrap().retired.len(), 1, "a worker has it");
        view.refresh();
        blocklist.tidy();
        assert!(blocklist.state.lock().unwrap().retired.is_empty());
        assert_eq!(blocklist.loaded().domains, 2);
    }
}
