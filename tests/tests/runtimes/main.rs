//! The CNI plugin under real container runtimes: containerd's CRI and `ctr`, and podman.

mod containerd;
mod cri;
mod podman;
mod stage;
