//! Lcores: threads pinned to CPUs and registered with DPDK.
//!
//! A list is written as DPDK's own `--lcores`: `1-3`, `0,2`, `0@0,1@0-1` (lcore 1 floats over CPUs
//! 0 and 1), `(4-5)@(0,2)`. An lcore without `@` runs on the CPU of its number.

use std::collections::BTreeSet;
use std::io;
use std::thread::{Builder, JoinHandle};

use dpdk_sys as sys;

use crate::{Eal, Error, Result};

/// One lcore of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lcore {
    pub id: u32,
    /// CPUs it may run on; one pins it.
    pub cpus: Vec<usize>,
}

/// Reads a list and checks it against the CPUs that this process may use.
pub fn parse(list: &str, allowed: &[usize]) -> Result<Vec<Lcore>> {
    let fail = |why: String| Error::Lcores { list: list.into(), why };
    let mut lcores: Vec<Lcore> = Vec::new();
    for item in split_outside_parentheses(list).map_err(|why| fail(why.into()))? {
        let (ids, cpus) = match item.split_once('@') {
            Some((ids, cpus)) => (numbers(ids).map_err(fail)?, Some(numbers(cpus).map_err(fail)?)),
            None => (numbers(item).map_err(fail)?, None),
        };
        for id in ids {
            let cpus: Vec<usize> = match &cpus {
                Some(cpus) => cpus.iter().copied().collect(),
                None => vec![id],
            };
            if let Some(cpu) = cpus.iter().find(|c| !allowed.contains(c)) {
                return Err(fail(format!(
                    "lcore {id} wants CPU {cpu}, but this process may use CPUs {}; \
                     {id}@{} would run it there",
                    ranges(allowed),
                    ranges(allowed),
                )));
            }
            if lcores.iter().any(|l| l.id as usize == id) {
                return Err(fail(format!("lcore {id} is listed twice")));
            }
            lcores.push(Lcore { id: id as u32, cpus });
        }
    }
    if lcores.is_empty() {
        return Err(fail("it names no lcore".into()));
    }
    Ok(lcores)
}

fn split_outside_parentheses(list: &str) -> std::result::Result<Vec<&str>, &'static str> {
    let (mut depth, mut start, mut items) = (0i32, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return Err("its parentheses do not match");
        }
    }
    if depth != 0 {
        return Err("its parentheses do not match");
    }
    items.push(&list[start..]);
    Ok(items)
}

/// `3`, `1-3`, `(0,2-4)`.
fn numbers(text: &str) -> std::result::Result<BTreeSet<usize>, String> {
    let inner = text.trim();
    let inner = inner.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(inner);
    let mut out = BTreeSet::new();
    let number = |t: &str| -> std::result::Result<usize, String> {
        match t.trim().parse::<usize>() {
            Ok(n) if n < 1024 => Ok(n),
            _ => Err(format!("{:?} is not a number, a range like 1-3, or LCORE@CPU", t.trim())),
        }
    };
    for part in inner.split(',') {
        match part.split_once('-') {
            Some((a, b)) => {
                let (a, b) = (number(a)?, number(b)?);
                if a > b {
                    return Err(format!("the range {part} runs backwards"));
                }
                out.extend(a..=b);
            }
            None => {
                out.insert(number(part)?);
            }
        }
    }
    Ok(out)
}

fn ranges(cpus: &[usize]) -> String {
    match (cpus.first(), cpus.last()) {
        (Some(a), Some(b)) if b - a + 1 == cpus.len() && a != b => format!("{a}-{b}"),
        _ => cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
    }
}

/// The CPUs that the calling thread may run on, ascending.
pub fn affinity() -> io::Result<Vec<usize>> {
    // SAFETY: all-zero is a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a pointer to a live local and its size.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CPU_ISSET reads inside the set for indexes below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&c| unsafe { libc::CPU_ISSET(c, &set) }).collect())
}

/// Restricts the calling thread to these CPUs.
pub fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all-zero is a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&c| c < libc::CPU_SETSIZE as usize) {
        // SAFETY: the index is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: a pointer to a live local and its size.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A running lcore.
#[derive(Debug)]
pub struct Thread<T>(JoinHandle<Option<T>>);

impl<T> Thread<T> {
    /// Waits for its end; `Err` holds the panic that ended it.
    pub fn join(self) -> std::thread::Result<T> {
        self.0.join()?.ok_or_else(|| Box::new("it was never registered") as _)
    }

    /// Whether it has ended, so that [`Thread::join`] would not wait.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// Starts a named thread on the lcore's CPUs, registered with DPDK for as long as `run` lasts.
pub fn spawn<T: Send + 'static>(
    _eal: &Eal,
    lcore: &Lcore,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<Thread<T>> {
    let (id, cpus) = (lcore.id, lcore.cpus.clone());
    let fail = move |why: String| Error::Lcore { id, why };
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let handle = Builder::new()
        .name(format!("lcore-{id}"))
        .spawn(move || {
            let ready = enter(&cpus);
            let ok = ready.is_ok();
            let _ = tell.send(ready);
            if !ok {
                return None;
            }
            let _registered = Registered;
            Some(run())
        })
        .map_err(|e| fail(format!("its thread did not start: {e}")))?;
    match told.recv() {
        Ok(Ok(())) => Ok(Thread(handle)),
        Ok(Err(why)) => Err(fail(why)),
        Err(_) => Err(fail("its thread ended at once".into())),
    }
}

fn enter(cpus: &[usize]) -> std::result::Result<(), String> {
    set_affinity(cpus).map_err(|e| format!("it could not be put on CPUs {}: {e}", ranges(cpus)))?;
    // SAFETY: called once on a thread that is not an lcore yet.
    if unsafe { sys::rte_thread_register() } != 0 {
        return Err("DPDK has no free lcore id left".into());
    }
    Ok(())
}

struct Registered;

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: made only on a thread that was registered, dropped on the same thread.
        unsafe { sys::rte_thread_unregister() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &str, allowed: &[usize]) -> Vec<(u32, Vec<usize>)> {
        parse(list, allowed).expect(list).into_iter().map(|l| (l.id, l.cpus)).collect()
    }

    #[test]
    fn lists_in_dpdks_own_syntax() {
        let four = [0, 1, 2, 3];
        assert_eq!(ids("1-3", &four), [(1, vec![1]), (2, vec![2]), (3, vec![3])]);
        assert_eq!(ids("0", &four), [(0, vec![0])]);
        assert_eq!(ids("0@0,1@0-1", &[0, 1]), [(0, vec![0]), (1, vec![0, 1])]);
        assert_eq!(ids("(4-5)@(0,2)", &four), [(4, vec![0, 2]), (5, vec![0, 2])]);
        assert_eq!(ids("3,1", &four), [(3, vec![3]), (1, vec![1])]);
    }

    #[test]
    fn a_list_that_cannot_run_says_why() {
        for (list, needle) in [
            ("1-3", "CPU 2"),
            ("", "not a number"),
            ("a", "not a number"),
            ("1-", "not a number"),
            ("3-1", "backwards"),
            ("0,0", "twice"),
            ("(0,1", "parentheses"),
            ("0)", "parentheses"),
            ("0@9", "CPU 9"),
            ("99999999999999999999", "not a number"),
        ] {
            let error = parse(list, &[0, 1]).expect_err(list).to_string();
            assert!(error.contains(needle), "{list}: {error}");
        }
    }
}
