//! The program `flanneld` on one node, fed from a file, judged by foreign tools.

mod commands;
mod node;
mod peers;
mod repair;
mod subnet;
