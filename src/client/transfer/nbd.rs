//! An NBD server for one descriptor and one client: how qemu-img reads a file that it must not open itself.
//!
//! qemu-img opens by name, and a name is not what we have: a pinned descriptor shows its point in time only when it is
//! read itself (opening `/proc/self/fd/N` makes a new, unpinned one), and an image from elsewhere must be read with
//! the header that was checked, not with one that was put in its place since. So qemu-img gets one end of a socket
//! pair, which has no name that anybody else could connect to, and this server answers on the other.
//!
//! The protocol is NBD fixed newstyle with structured replies and the `base:allocation` context, which tells the
//! client where holes are: without it a sparse terabyte would be read as zeros. Read-only. See the NBD project's
//! `doc/proto.md` for the numbers.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::source::Source;

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
const HANDSHAKE_NO_ZEROES: u16 = 2;

const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = (1 << 31) | 1;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// HAS_FLAGS, READ_ONLY.
const TRANSMISSION_FLAGS: u16 = 1 | 2;

const CMD_READ: u16 = 0;
const CMD_DISCONNECT: u16 = 2;
const CMD_BLOCK_STATUS: u16 = 7;

const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) | 1;
const CHUNK_DONE: u16 = 1;

const CONTEXT: &[u8] = b"base:allocation";
const CONTEXT_ID: u32 = 1;
/// HOLE and ZERO.
const STATE_HOLE: u32 = 1 | 2;

/// Largest option and largest read that are taken; qemu sends at most a few hundred bytes and 32 MiB.
const MAX_OPTION: u32 = 64 << 10;
const MAX_READ: u32 = 32 << 20;
/// Sizes are rounded up to this: qemu counts in sectors. What is added reads as zeros.
const SECTOR: u64 = 512;

/// What one server serves, and what it has seen.
#[derive(Debug)]
pub struct Export<'a> {
    source: &'a Source,
    /// The first bytes of the file, as they were checked; served in place of what the file says now.
    prefix: &'a [u8],
    /// The file is made to seem this long; reading what it does not have is an error.
    size: u64,
    grows_by_granules: bool,
    requests: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl<'a> Export<'a> {
    /// Serves `source`, but its first bytes from `prefix`.
    pub fn new(source: &'a Source, prefix: &'a [u8]) -> Export<'a> {
        let size = source.size().next_multiple_of(SECTOR);
        Export {
            source,
            prefix,
            size,
            grows_by_granules: false,
            requests: AtomicU64::new(0),
            failure: Mutex::new(None),
        }
    }

    /// For an image that grows by `granule` bytes: if the file ends within one, reading past that end is an error.
    /// qemu-img alone would read zeros there, in place of what a truncated image has lost.
    pub fn with_granule(mut self, granule: Option<u64>) -> Export<'a> {
        if let Some(granule) = granule {
            self.size = self.source.size().next_multiple_of(granule.max(SECTOR));
            self.grows_by_granules = true;
        }
        self
    }

    /// Number of requests so far: while it grows the client is alive.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The first error of reading the source; the client knows only that there was one.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().take()
    }

    /// The file that is served.
    pub fn source(&self) -> &Source {
        self.source
    }

    /// End of the file in whole sectors; what lies between this and `size` has been lost.
    fn sectors_end(&self) -> u64 {
        self.source.size().next_multiple_of(SECTOR)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.is_lost(offset, offset + buffer.len() as u64) {
            let cause = format!("it is cut short: it ends at byte {} and is read beyond that", self.source.size());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause));
        }
        self.source.read_at(buffer, offset)?;
        if let Some(checked) = self.prefix.get(usize::try_from(offset).unwrap_or(usize::MAX)..) {
            let len = checked.len().min(buffer.len());
            buffer[..len].copy_from_slice(&checked[..len]);
        }
        Ok(())
    }

    /// Whether a read of an image asks for what the file no longer has. The rest of the last sector belongs to a
    /// compressed cluster, which may end anywhere, if the read does not begin with a sector; tables and plain clusters
    /// do.
    fn is_lost(&self, from: u64, to: u64) -> bool {
        let len = self.source.size();
        to > self.sectors_end() || (self.grows_by_granules && to > len && from < len && from.is_multiple_of(SECTOR))
    }

    /// Length and state of the run at `offset`, at most `limit` bytes long.
    fn run(&self, offset: u64, limit: u32) -> io::Result<(u32, u32)> {
        let (end, hole) = if offset < self.prefix.len() as u64 {
            (self.prefix.len() as u64, false)
        } else if offset >= self.source.size() {
            (self.size, false)
        } else {
            let extent = self.source.extent(offset)?;
            (extent.end, !extent.data)
        };
        // The client counts in sectors: one that is partly data counts as data.
        let whole = if end >= self.source.size() { self.sectors_end() } else { end / SECTOR * SECTOR };
        let (end, hole) = if hole && whole > offset { (whole, true) } else { (end.next_multiple_of(SECTOR), false) };
        let len = (end.min(self.size) - offset).min(u64::from(limit)) as u32;
        Ok((len, if hole { STATE_HOLE } else { 0 }))
    }

    /// Answers one client until it disconnects. Errors are those of the socket; they mean that the client is gone.
    pub fn serve(&self, socket: &UnixStream) -> io::Result<()> {
        let mut connection =
            Connection { export: self, input: BufReader::new(socket), output: socket, buffer: Vec::new() };
        if connection.negotiate()? { connection.transmit() } else { Ok(()) }
    }
}

struct Connection<'a> {
    export: &'a Export<'a>,
    input: BufReader<&'a UnixStream>,
    output: &'a UnixStream,
    buffer: Vec<u8>,
}

/// A request after negotiation.
struct Request {
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Connection<'_> {
    /// Answers options until the client goes over to requests (`true`) or gives up.
    fn negotiate(&mut self) -> io::Result<bool> {
        let flags = HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES;
        self.output.write_all(&[&MAGIC[..], OPTION_MAGIC, &flags.to_be_bytes()].concat())?;
        self.u32()?;
        loop {
            let mut magic = [0u8; 8];
            self.input.read_exact(&mut magic)?;
            let (option, len) = (self.u32()?, self.u32()?);
            if &magic != OPTION_MAGIC || len > MAX_OPTION {
                return Err(protocol_error());
            }
            let mut data = vec![0u8; len as usize];
            self.input.read_exact(&mut data)?;
            match option {
                OPT_ABORT => {
                    self.option_reply(option, REP_ACK, &[])?;
                    return Ok(false);
                }
                OPT_GO | OPT_INFO => {
                    let size = self.export.size.to_be_bytes();
                    let info = [&INFO_EXPORT.to_be_bytes()[..], &size, &TRANSMISSION_FLAGS.to_be_bytes()].concat();
                    self.option_reply(option, REP_INFO, &info)?;
                    let sizes = [1u32, 4096, MAX_READ].map(u32::to_be_bytes).concat();
                    self.option_reply(option, REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())?;
                    self.option_reply(option, REP_ACK, &[])?;
                    if option == OPT_GO {
                        return Ok(true);
                    }
                }
                OPT_STRUCTURED_REPLY => self.option_reply(option, REP_ACK, &[])?,
                OPT_SET_META_CONTEXT => {
                    if data.windows(CONTEXT.len()).any(|w| w == CONTEXT) {
                        let context = [&CONTEXT_ID.to_be_bytes()[..], CONTEXT].concat();
                        self.option_reply(option, REP_META_CONTEXT, &context)?;
                    }
                    self.option_reply(option, REP_ACK, &[])?;
                }
                _ => self.option_reply(option, REP_ERR_UNSUP, &[])?,
            }
        }
    }

    /// Answers requests until the client disconnects.
    fn transmit(&mut self) -> io::Result<()> {
        while let Some(request) = self.request()? {
            self.export.requests.fetch_add(1, Ordering::Relaxed);
            let answered = match request.kind {
                CMD_READ => self.read(&request),
                CMD_BLOCK_STATUS => self.block_status(&request),
                CMD_DISCONNECT => return Ok(()),
                _ => Ok(Err(io::Error::from_raw_os_error(libc::EINVAL))),
            };
            if let Err(e) = answered? {
                let code = e.raw_os_error().filter(|c| *c == libc::EINVAL).unwrap_or(libc::EIO) as u32;
                self.export.failure.lock().get_or_insert(e);
                self.reply(&request, CHUNK_ERROR, &[&code.to_be_bytes()[..], &[0, 0]].concat())?;
            }
        }
        Ok(())
    }

    /// The outer error is the socket's, the inner one the source's.
    fn read(&mut self, request: &Request) -> io::Result<io::Result<()>> {
        let within = request.offset.checked_add(request.len.into()).is_some_and(|end| end <= self.export.size);
        if !within || request.len > MAX_READ {
            return Ok(Err(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        if request.len == 0 {
            return self.reply(request, CHUNK_NONE, &[]).map(Ok);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        // The head of the reply is in the same buffer, so that it goes out in the same call.
        buffer.resize(request.len as usize + 28, 0);
        buffer[..20].copy_from_slice(&reply_head(request, CHUNK_OFFSET_DATA, request.len + 8));
        buffer[20..28].copy_from_slice(&request.offset.to_be_bytes());
        let read = self.export.read(&mut buffer[28..], request.offset);
        let sent = if read.is_ok() { self.output.write_all(&buffer) } else { Ok(()) };
        self.buffer = buffer;
        sent.map(|()| read)
    }

    fn block_status(&mut self, request: &Request) -> io::Result<io::Result<()>> {
        if request.offset >= self.export.size || request.len == 0 {
            return Ok(Err(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        match self.export.run(request.offset, request.len) {
            Ok((len, state)) => {
                let payload = [CONTEXT_ID, len, state].map(u32::to_be_bytes).concat();
                self.reply(request, CHUNK_BLOCK_STATUS, &payload).map(Ok)
            }
            Err(e) => Ok(Err(e)),
        }
    }

    /// The next request; `None` when the client closed the socket between two.
    fn request(&mut self) -> io::Result<Option<Request>> {
        let mut head = [0u8; 28];
        match self.input.read(&mut head)? {
            0 => return Ok(None),
            n => self.input.read_exact(&mut head[n..])?,
        }
        let [m0, m1, m2, m3, _, _, k0, k1, rest @ ..] = head;
        let (cookie, rest) = rest.split_first_chunk::<8>().ok_or_else(protocol_error)?;
        let (offset, len) = rest.split_first_chunk::<8>().ok_or_else(protocol_error)?;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REQUEST_MAGIC {
            return Err(protocol_error());
        }
        Ok(Some(Request {
            kind: u16::from_be_bytes([k0, k1]),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            len: u32::from_be_bytes(len.try_into().map_err(|_| protocol_error())?),
        }))
    }

    fn reply(&mut self, request: &Request, chunk: u16, payload: &[u8]) -> io::Result<()> {
        let head = reply_head(request, chunk, payload.len() as u32);
        self.output.write_all(&[&head[..], payload].concat())
    }

    fn option_reply(&mut self, option: u32, reply: u32, payload: &[u8]) -> io::Result<()> {
        let len = payload.len() as u32;
        let head =
            [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &[option, reply, len].map(u32::to_be_bytes).concat()].concat();
        self.output.write_all(&[&head[..], payload].concat())
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0u8; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }
}

/// Head of the only chunk of a reply.
fn reply_head(request: &Request, chunk: u16, len: u32) -> [u8; 20] {
    let mut head = [0u8; 20];
    head[..4].copy_from_slice(&STRUCTURED_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&CHUNK_DONE.to_be_bytes());
    head[6..8].copy_from_slice(&chunk.to_be_bytes());
    head[8..16].copy_from_slice(&request.cookie.to_be_bytes());
    head[16..].copy_from_slice(&len.to_be_bytes());
    head
}

fn protocol_error() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the NBD client broke the protocol")
}
