//! Tables as values: what is refused, how they read, where packets go, and that changes lead there.

mod c6;
mod check;
mod faults;
mod laws;
mod random;
mod text;
mod trace;
