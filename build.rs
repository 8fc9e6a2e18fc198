//! Says at compile time which version this is: the package's, and of a release build the commit.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MALAKOCUT_COMMIT");
    // A build for development would be made anew after each commit for the sake of a name.
    let release = std::env::var("PROFILE").is_ok_and(|p| p == "release");
    let given = std::env::var("MALAKOCUT_COMMIT").ok().filter(|c| !c.is_empty());
    let commit = given.or_else(|| release.then(commit).flatten());
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let text = match commit {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo:rustc-env=MALAKOCUT_VERSION={text}");
}

/// The commit of the checkout, with a mark where files differ from it; `None` outside of one.
fn commit() -> Option<String> {
    for name in ["HEAD", "index"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        println!("cargo:rerun-if-changed={path}");
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12"])
}

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?.trim().to_owned();
    (out.status.success() && !text.is_empty()).then_some(text)
}
