//! Generator, training and evaluation of the pocket model (`POCKET.md`).
