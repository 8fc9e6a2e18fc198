//! The environment abstraction layer: started once a process, never started again.
//!
//! `rte_eal_init` pins its caller to one CPU, and threads made later inherit that; [`Eal::init`]
//! puts the affinity back. DPDK explains most failures only in its log, so the last lines are kept
//! and become part of the error. Buffer pools live until the process ends.

use std::collections::VecDeque;
use std::ffi::{CString, c_char};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use dpdk_sys as sys;

use crate::mbuf::Meta;
use crate::port::Port;
use crate::{Error, Result, strerror};

/// Where DPDK takes its memory from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Hugepages, taken as needed and given back at exit.
    Huge,
    /// Ordinary pages, this many MiB, for machines without hugepages; needs no privilege.
    Ordinary { mib: u32 },
}

/// How to start DPDK.
#[derive(Clone, Debug)]
pub struct EalConfig {
    pub memory: Memory,
    /// PCI addresses to probe; none of the others is touched.
    pub pci: Vec<String>,
}

/// Proof that DPDK runs in this process.
#[derive(Debug)]
pub struct Eal(());

static STARTED: AtomicBool = AtomicBool::new(false);
static LOG: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
const LOG_LINES: usize = 64;

/// Byte offset of the packet's timestamp in an mbuf, and the flag that says a driver set it.
pub(crate) static TIMESTAMP_OFFSET: AtomicI32 = AtomicI32::new(0);
pub(crate) static TIMESTAMP_FLAG: AtomicU64 = AtomicU64::new(0);
/// Byte offset of our own [`Meta`] in an mbuf.
pub(crate) static META_OFFSET: AtomicI32 = AtomicI32::new(0);

impl Eal {
    /// Starts DPDK. A second call in the same process fails, whatever became of the first.
    pub fn init(config: &EalConfig) -> Result<Self> {
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(Error::Init("it was started before in this process".into()));
        }
        // SAFETY: the callback only takes a lock and copies; called before rte_eal_init, as needed.
        if unsafe { sys::shim_log_to(Some(on_log)) } != 0 {
            return Err(Error::Init("its log could not be redirected".into()));
        }
        let affinity = crate::lcore::affinity()
            .map_err(|e| Error::Init(format!("the CPU affinity could not be read: {e}")))?;
        let args = arguments(config, &affinity);
        let owned: Vec<CString> =
            args.iter().filter_map(|a| CString::new(a.as_str()).ok()).collect();
        // EAL permutes the pointers and may write through them: hand out raw ownership, and leak it,
        // since it keeps some of them for the life of the process.
        let mut argv: Vec<*mut c_char> = owned.into_iter().map(CString::into_raw).collect();
        // SAFETY: argv holds that many valid NUL-terminated strings, none freed later.
        let rc = unsafe { sys::rte_eal_init(argv.len() as i32, argv.as_mut_ptr()) };
        let restored = crate::lcore::set_affinity(&affinity);
        if rc < 0 {
            // SAFETY: reads a thread-local integer.
            let errno = unsafe { sys::shim_errno() };
            return Err(Error::Init(explain(&strerror(errno))));
        }
        restored
            .map_err(|e| Error::Init(format!("the CPU affinity could not be put back: {e}")))?;
        register_fields()?;
        Ok(Self(()))
    }

    /// Attaches a virtual device such as `net_pcap0` with its arguments and returns its port.
    pub fn attach_vdev(&self, name: &str, args: &str) -> Result<Port> {
        let fail = |why: String| Error::Device { name: format!("{name},{args}"), why };
        let c_name = CString::new(name).map_err(|_| fail("its name holds a NUL byte".into()))?;
        let c_args =
            CString::new(args).map_err(|_| fail("its arguments hold a NUL byte".into()))?;
        clear_log();
        // SAFETY: three valid NUL-terminated strings, not kept by the callee.
        let rc =
            unsafe { sys::rte_eal_hotplug_add(c"vdev".as_ptr(), c_name.as_ptr(), c_args.as_ptr()) };
        if rc < 0 {
            return Err(fail(explain(&strerror(rc))));
        }
        // The bus may report success though the driver made no port.
        Port::by_name(name).ok_or_else(|| fail(explain("it was attached, but made no port")))
    }

    /// The port of a PCI address that was given to [`Eal::init`].
    pub fn pci_port(&self, address: &str) -> Result<Port> {
        Port::by_name(address).ok_or_else(|| Error::Device {
            name: address.into(),
            why: explain(
                "DPDK found no port there; bind the card first (malakocut-cli nic bind ADDRESS)",
            ),
        })
    }
}

/// The command line for `rte_eal_init`.
fn arguments(config: &EalConfig, cpus: &[usize]) -> Vec<String> {
    let cpus = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    // One EAL lcore that floats over every CPU we may use; ours are registered threads.
    let mut args = vec!["malakocut".to_owned(), "--lcores".to_owned(), format!("0@({cpus})")];
    match config.memory {
        // In 22.11 --no-huge implies --legacy-mem, which --in-memory refuses.
        Memory::Huge => args.push("--in-memory".into()),
        Memory::Ordinary { mib } => {
            args.extend(["--no-huge".into(), "--no-shconf".into(), "-m".into(), mib.to_string()]);
        }
    }
    args.push("--no-telemetry".into());
    if config.pci.is_empty() {
        args.push("--no-pci".into());
    }
    for address in &config.pci {
        args.extend(["-a".into(), address.clone()]);
    }
    args
}

fn register_fields() -> Result<()> {
    let fail = || {
        // SAFETY: reads a thread-local integer.
        let errno = unsafe { sys::shim_errno() };
        Error::Init(format!("no room for our fields in the packet buffers: {}", strerror(errno)))
    };
    let (mut offset, mut flag) = (0, 0);
    // SAFETY: both pointers are to live locals.
    if unsafe { sys::rte_mbuf_dyn_rx_timestamp_register(&raw mut offset, &raw mut flag) } != 0 {
        return Err(fail());
    }
    TIMESTAMP_OFFSET.store(offset, Ordering::Relaxed);
    TIMESTAMP_FLAG.store(flag, Ordering::Relaxed);
    let mut field = sys::rte_mbuf_dynfield {
        size: size_of::<Meta>(),
        align: align_of::<Meta>(),
        ..Default::default()
    };
    for (to, from) in field.name.iter_mut().zip(b"malakocut_meta") {
        *to = from.cast_signed();
    }
    // SAFETY: field is a live, fully initialised local with a NUL-terminated name.
    let at = unsafe { sys::rte_mbuf_dynfield_register(&raw const field) };
    if at < 0 {
        return Err(fail());
    }
    META_OFFSET.store(at, Ordering::Relaxed);
    Ok(())
}

unsafe extern "C" fn on_log(level: u32, text: *const c_char, len: usize) {
    if text.is_null() {
        return;
    }
    // SAFETY: the C stream passes a buffer of len bytes that is valid during this call.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    let Ok(mut log) = LOG.lock() else { return };
    for line in String::from_utf8_lossy(bytes).lines().filter(|l| !l.trim().is_empty()) {
        if level <= sys::RTE_LOG_WARNING {
            tracing::debug!(target: "dpdk", level, "{line}");
        } else {
            tracing::trace!(target: "dpdk", level, "{line}");
        }
        // Lines of lesser weight are never the reason of a failure.
        if level <= sys::RTE_LOG_ERR {
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line.trim().to_owned());
        }
    }
}

fn clear_log() {
    if let Ok(mut log) = LOG.lock() {
        log.clear();
    }
}

/// What DPDK logged since the last call, or `otherwise` if it said nothing.
fn explain(otherwise: &str) -> String {
    let lines: Vec<String> = LOG.lock().map(|mut l| l.drain(..).collect()).unwrap_or_default();
    // The lines run from the cause to what it made fail; the cause says most.
    match lines.first() {
        None => otherwise.to_owned(),
        Some(first) => first.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_memory_never_asks_for_in_memory() {
        let args = arguments(
            &EalConfig { memory: Memory::Ordinary { mib: 64 }, pci: Vec::new() },
            &[0, 1],
        );
        assert!(args.contains(&"--no-huge".to_owned()) && args.contains(&"--no-pci".to_owned()));
        assert!(!args.contains(&"--in-memory".to_owned()));
        assert!(args.contains(&"0@(0,1)".to_owned()));
    }
}
