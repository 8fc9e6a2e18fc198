//! libpcap's filter compiler and interpreter, safe to call.
//!
//! Only what a capture filter needs: text to a program, program to an answer. Other crates for
//! libpcap give a packet's captured length for its length on the wire and compile with a netmask of
//! 0, so that `len` and `ip broadcast` are answered wrongly; this one passes both on.
//!
//! Source: pcap-filter(7), pcap_compile(3PCAP), pcap/bpf.h of libpcap 1.10.

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_uint, c_void};
use std::ptr::NonNull;

/// `struct bpf_program`.
#[repr(C)]
struct RawProgram {
    len: c_uint,
    instructions: *mut Instruction,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

unsafe extern "C" {
    fn pcap_open_dead(link: c_int, snaplen: c_int) -> *mut c_void;
    fn pcap_close(handle: *mut c_void);
    fn pcap_geterr(handle: *mut c_void) -> *const c_char;
    fn pcap_compile(
        handle: *mut c_void,
        program: *mut RawProgram,
        text: *const c_char,
        optimize: c_int,
        netmask: u32,
    ) -> c_int;
    fn pcap_freecode(program: *mut RawProgram);
    fn bpf_filter(
        program: *const Instruction,
        packet: *const c_uchar,
        wire_len: c_uint,
        captured: c_uint,
    ) -> c_uint;
}

/// `PCAP_NETMASK_UNKNOWN`: what needs a netmask is refused.
const NETMASK_UNKNOWN: u32 = 0xffff_ffff;
const SNAPLEN: c_int = 262_144;

/// The DLT_ number of a LINKTYPE_ number: raw IP is the one that differs here.
fn data_link(link: u16) -> c_int {
    const DLT_RAW: c_int = 12;
    if link == 101 { DLT_RAW } else { c_int::from(link) }
}

/// A compiled filter for one link type.
pub struct Program(Vec<Instruction>);

impl Program {
    /// Compiles a pcap-filter expression for a LINKTYPE_ number; the error is libpcap's own
    /// words. Names in the expression may be looked up in the network's own services.
    pub fn compile(text: &str, link: u16) -> Result<Self, String> {
        let text = CString::new(text).map_err(|_| "it contains a NUL byte".to_owned())?;
        // SAFETY: takes two numbers and gives a handle or null.
        let handle = NonNull::new(unsafe { pcap_open_dead(data_link(link), SNAPLEN) })
            .ok_or_else(|| "libpcap gives no handle".to_owned())?;
        let mut raw = RawProgram { len: 0, instructions: std::ptr::null_mut() };
        // SAFETY: the handle is open, `raw` is a place for the answer, the text ends with NUL.
        let status =
            unsafe { pcap_compile(handle.as_ptr(), &mut raw, text.as_ptr(), 1, NETMASK_UNKNOWN) };
        let result = if status == 0 && !raw.instructions.is_null() {
            // SAFETY: libpcap filled `raw` in with so many instructions; they are copied, then
            // given back.
            unsafe {
                let all = std::slice::from_raw_parts(raw.instructions, raw.len as usize).to_vec();
                pcap_freecode(&mut raw);
                Ok(Self(all))
            }
        } else {
            // SAFETY: the handle is open, and its last error is a C string that lives in it.
            let words = unsafe { CStr::from_ptr(pcap_geterr(handle.as_ptr())) };
            Err(words.to_string_lossy().into_owned())
        };
        // SAFETY: opened above, used no more.
        unsafe { pcap_close(handle.as_ptr()) };
        result
    }

    /// Whether a packet is wanted, given the captured bytes and its length on the wire.
    #[inline]
    pub fn matches(&self, packet: &[u8], wire_len: u32) -> bool {
        let captured = packet.len() as c_uint;
        // SAFETY: the program is whole and libpcap's own, which ends in a return on every path and
        // only jumps forward; the interpreter reads no byte behind `captured`, and writes nothing.
        unsafe { bpf_filter(self.0.as_ptr(), packet.as_ptr(), wire_len, captured) != 0 }
    }

    /// Whether it is one instruction that takes every packet, or none.
    pub fn constant(&self) -> Option<bool> {
        match self.0.as_slice() {
            // BPF_RET | BPF_K
            [Instruction { code: 0x06, k, .. }] => Some(*k != 0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_on_the_wire_and_netmasks_are_not_guessed() {
        let long = Program::compile("len > 100", 1).unwrap();
        assert!(long.matches(&[0; 20], 101));
        assert!(!long.matches(&[0; 20], 100));
        assert!(Program::compile("ip broadcast", 1).is_err());
        assert_eq!(Program::compile("", 1).unwrap().constant(), Some(true));
        assert!(Program::compile("tcp prot 80", 1).err().unwrap().contains("syntax"));
        assert!(Program::compile("ip\0", 1).is_err());
    }

    #[test]
    fn bytes_that_were_not_captured_match_nothing() {
        let syn = Program::compile("tcp[13] & 2 != 0", 1).unwrap();
        for n in 0..60 {
            assert!(!syn.matches(&vec![0; n], 60));
        }
    }
}
