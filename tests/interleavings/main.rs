//! Interleavings and failures that went wrong once, each brought about on purpose: at a chosen call to the backing
//! filesystem something else happens, or the call fails. The names of the tests say what must hold.

mod adoption;
mod contents;
mod durability;
mod exchanged;
mod extent;
mod finishing;
mod hooks;
mod layers;
mod loading;
#[path = "../common/names.rs"]
mod names;
mod unsynced;
mod world;
