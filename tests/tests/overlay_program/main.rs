//! The program `flanneld` on one node, fed from a file, judged by foreign tools.

mod commands;
mod device;
mod node;
mod peers;
mod remembered;
mod repair;
mod subnet;
