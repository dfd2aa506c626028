//! How tensors go from rank to rank: in pieces, to the rank that owns each and back from there.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, cast_slice, pod_collect_to_vec};
use candle_core::{DType, Device, Tensor, WithDType};
use tpgm_core::Slice;

use super::super::Named;
use super::super::call::Kind;
use super::super::mean::{copy_to, mean};
use super::group::{Group, Stop};
use super::library::{Tag, Transfer};
use crate::memory::Elements;

/// Elements of a piece, at most.
const PIECE: usize = 1 << 16;

/// Bytes that are on their way to a rank at a time, at most, over all ranks.
const WINDOW: usize = 16 << 20;

/// Some elements of a tensor.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    tensor: usize,
    elements: Range<usize>,
    bytes: usize,
    owner: usize,
}

/// Cuts tensors of so many elements, of so many bytes each. Without owners pieces go to the rank that has the least.
fn cut(tensors: &[(usize, usize)], owners: Option<&[usize]>, ranks: usize) -> Vec<Piece> {
    let (mut pieces, mut loads) = (Vec::new(), vec![0; ranks]);
    for (tensor, (numel, size)) in tensors.iter().enumerate() {
        for start in (0..*numel).step_by(PIECE) {
            let elements = start..numel.min(&(start + PIECE)).to_owned();
            let bytes = elements.len() * size;
            let least = || (0..ranks).min_by_key(|rank| (loads[*rank], *rank)).expect("there is a rank");
            let owner = owners.map_or_else(least, |owners| owners[tensor]);
            loads[owner] += bytes;
            pieces.push(Piece { tensor, elements, bytes, owner });
        }
    }
    pieces
}

/// Pieces in an order in which all ranks have as much in every window, as long as they have any: messages go in all directions. A
/// window of f32 holds 16 pieces among 2 ranks and 8 among 4; from 6 ranks on it holds fewer than there are ranks, some of which own
/// nothing of it.
fn interleaved(pieces: Vec<Piece>, ranks: usize) -> Vec<Piece> {
    let mut before = vec![0; ranks];
    let key = |piece: Piece| {
        let bytes = before[piece.owner];
        before[piece.owner] += piece.bytes;
        ((bytes, piece.owner), piece)
    };
    let mut pieces: Vec<_> = pieces.into_iter().map(key).collect();
    pieces.sort_by_key(|(key, _)| *key);
    pieces.into_iter().map(|(_, piece)| piece).collect()
}

/// Pieces that follow each other, as many as fit.
fn windows(pieces: &[Piece], limit: usize) -> Vec<&[Piece]> {
    let (mut windows, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, piece) in pieces.iter().enumerate() {
        if i > start && bytes + piece.bytes > limit {
            windows.push(&pieces[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += piece.bytes;
    }
    if start < pieces.len() {
        windows.push(&pieces[start..]);
    }
    windows
}

/// Bytes of the pieces of a rank.
fn bytes_of(pieces: &[Piece], rank: usize) -> usize {
    pieces.iter().filter(|piece| piece.owner == rank).map(|piece| piece.bytes).sum()
}

/// Does what a call asks for, on this rank. Tensors are contiguous.
pub(super) fn exchange(
    group: &mut Group,
    kind: Kind,
    tensors: &[Named<'_>],
    owners: &[usize],
) -> Result<(), Stop> {
    let flat =
        tensors.iter().map(|(_, tensor)| tensor.flatten_all()).collect::<candle_core::Result<Vec<_>>>();
    let work = Work { tensors: flat.map_err(failed)? };
    let sizes: Vec<_> =
        work.tensors.iter().map(|tensor| (tensor.elem_count(), tensor.dtype().size_in_bytes())).collect();
    let ranks = group.channel.size;
    let pieces = interleaved(cut(&sizes, (kind != Kind::Mean).then_some(owners), ranks), ranks);
    // Two are under way: while this rank computes with one, the next comes.
    let windows = windows(&pieces, (WINDOW / 2 / ranks).max(1));
    let mut next = None;
    for (i, window) in windows.iter().enumerate() {
        if kind == Kind::Share {
            work.share(group, window, &mut [])?;
            continue;
        }
        let now = match next.take() {
            Some(begun) => begun,
            None => work.begin_gather(group, window)?,
        };
        let mut coming = match windows.get(i + 1) {
            Some(window) => work.begin_gather(group, window)?,
            None => Vec::new(),
        };
        work.gather(group, window, now, &mut coming)?;
        if kind != Kind::MeanToOwner {
            work.share(group, window, &mut coming)?;
        }
        next = Some(coming);
    }
    Ok(())
}

/// Lets messages go on: MPI moves them only while it is called.
fn nudge(coming: &mut [Transfer]) -> Result<(), Stop> {
    for transfer in coming {
        if !transfer.is_done()? {
            break;
        }
    }
    Ok(())
}

/// The tensors of this rank, flat, in their own memory.
struct Work {
    tensors: Vec<Tensor>,
}

impl Work {
    /// Begins to send pieces to their owners. What comes back are first the messages that this rank receives, if it owns any.
    fn begin_gather(&self, group: &Group, pieces: &[Piece]) -> Result<Vec<Transfer>, Stop> {
        let own = bytes_of(pieces, group.channel.rank);
        let mut transfers = Vec::new();
        if own > 0 {
            for other in group.others() {
                transfers.push(group.channel.receive(other, Tag::Gather, own)?);
            }
        }
        for other in group.others().filter(|other| bytes_of(pieces, *other) > 0) {
            let bytes = Arc::new(self.bytes(pieces, other)?);
            transfers.push(group.send(other, Tag::Gather, &bytes)?);
        }
        Ok(transfers)
    }

    /// Ends that, and makes means of the pieces that this rank owns, while others are `coming`.
    fn gather(
        &self,
        group: &mut Group,
        pieces: &[Piece],
        mut transfers: Vec<Transfer>,
        coming: &mut [Transfer],
    ) -> Result<(), Stop> {
        let (rank, size) = (group.channel.rank, group.channel.size);
        group.finish(&mut transfers)?;
        if bytes_of(pieces, rank) == 0 {
            return Ok(());
        }
        let received: Vec<Vec<u8>> =
            transfers.iter_mut().take(size - 1).map(|transfer| transfer.take()).collect();
        drop(transfers);
        let mut at = 0;
        for piece in pieces.iter().filter(|piece| piece.owner == rank) {
            let here = self.piece(piece).map_err(failed)?;
            let mut ranks = Vec::with_capacity(size);
            for bytes in &received {
                ranks.push(tensor(&bytes[at..at + piece.bytes], here.dtype()).map_err(failed)?);
            }
            ranks.insert(rank, here);
            let mean = mean(&ranks.iter().collect::<Vec<_>>()).map_err(failed)?;
            self.put(piece, &mean)?;
            at += piece.bytes;
            nudge(coming)?;
        }
        Ok(())
    }

    /// Sends pieces from their owners to all others, while more are `coming`.
    fn share(&self, group: &mut Group, pieces: &[Piece], coming: &mut [Transfer]) -> Result<(), Stop> {
        let rank = group.channel.rank;
        let mut received = Vec::new();
        for other in group.others() {
            let bytes = bytes_of(pieces, other);
            if bytes > 0 {
                received.push(group.channel.receive(other, Tag::Share, bytes)?);
            }
        }
        let mut sent = Vec::new();
        if bytes_of(pieces, rank) > 0 {
            let bytes = Arc::new(self.bytes(pieces, rank)?);
            for other in group.others() {
                sent.push(group.send(other, Tag::Share, &bytes)?);
            }
        }
        group.finish(&mut received)?;
        for transfer in &mut received {
            let bytes = transfer.take();
            let mut at = 0;
            for piece in pieces.iter().filter(|piece| piece.owner == transfer.peer) {
                let dtype = self.tensors[piece.tensor].dtype();
                self.put(piece, &tensor(&bytes[at..at + piece.bytes], dtype).map_err(failed)?)?;
                at += piece.bytes;
                nudge(coming)?;
            }
        }
        group.finish(&mut sent)
    }

    /// A piece on the host: in its own memory if it is there.
    fn piece(&self, piece: &Piece) -> candle_core::Result<Tensor> {
        let view = self.tensors[piece.tensor].narrow(0, piece.elements.start, piece.elements.len())?;
        view.to_device(&Device::Cpu)
    }

    /// The pieces of an owner, one after the other.
    fn bytes(&self, pieces: &[Piece], owner: usize) -> Result<Vec<u8>, Stop> {
        let mut bytes = Vec::with_capacity(bytes_of(pieces, owner));
        for piece in pieces.iter().filter(|piece| piece.owner == owner) {
            let view = self.piece(piece).map_err(failed)?;
            let elements = Elements::new("a tensor of the call", &view).map_err(failed)?;
            bytes.extend_from_slice(match elements.slice() {
                Slice::F64(data) => cast_slice(data),
                Slice::F32(data) => cast_slice(data),
                Slice::F16(data) => cast_slice(data),
                Slice::BF16(data) => cast_slice(data),
            });
        }
        Ok(bytes)
    }

    /// Writes a piece, rounding to its type.
    fn put(&self, piece: &Piece, source: &Tensor) -> Result<(), Stop> {
        let target = &self.tensors[piece.tensor];
        let write = || -> super::super::error::Result<()> {
            if target.device().is_cpu() {
                return copy_to(source, &[&self.piece(piece)?]);
            }
            let rounded = Tensor::zeros(source.shape(), target.dtype(), &Device::Cpu)?;
            copy_to(source, &[&rounded])?;
            Ok(target.slice_set(&rounded.to_device(target.device())?, 0, piece.elements.start)?)
        };
        write().map_err(failed)
    }
}

/// Bytes as a tensor on the host.
fn tensor(bytes: &[u8], dtype: DType) -> candle_core::Result<Tensor> {
    fn of<T: WithDType + Pod>(bytes: &[u8]) -> candle_core::Result<Tensor> {
        // A copy: bytes may begin anywhere.
        let elements: Vec<T> = pod_collect_to_vec(bytes);
        let len = elements.len();
        Tensor::from_vec(elements, len, &Device::Cpu)
    }
    match dtype {
        DType::F64 => of::<f64>(bytes),
        DType::F32 => of::<f32>(bytes),
        DType::F16 => of::<half::f16>(bytes),
        DType::BF16 => of::<half::bf16>(bytes),
        dtype => candle_core::bail!("{} cannot be exchanged", dtype.as_str()),
    }
}

fn failed(error: impl std::fmt::Display) -> Stop {
    Stop::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_to_their_owners_or_where_there_is_least() {
        let tensors = [(PIECE + 1, 4), (0, 4), (3, 2)];
        let piece = |tensor, elements: Range<usize>, size, owner| {
            let bytes = elements.len() * size;
            Piece { tensor, elements, bytes, owner }
        };
        let expected = [piece(0, 0..PIECE, 4, 1), piece(0, PIECE..PIECE + 1, 4, 1), piece(2, 0..3, 2, 0)];
        assert_eq!(cut(&tensors, Some(&[1, 0, 0]), 2), expected);
        // 262144 bytes to rank 0; 4 to rank 1; then it is rank 1 again that has less.
        let owners: Vec<usize> = cut(&tensors, None, 2).iter().map(|piece| piece.owner).collect();
        assert_eq!(owners, [0, 1, 1]);
    }

    #[test]
    fn windows_have_pieces_of_all_ranks() {
        let pieces = cut(&[(2 * PIECE, 4), (PIECE, 4), (3, 4), (PIECE, 4)], Some(&[0, 0, 1, 1]), 2);
        let order: Vec<_> = interleaved(pieces, 2)
            .iter()
            .map(|piece| (piece.owner, piece.tensor, piece.elements.start))
            .collect();
        // The second of rank 1 begins after 12 bytes of its own, the second of rank 0 after 262144.
        assert_eq!(order, [(0, 0, 0), (1, 2, 0), (1, 3, 0), (0, 0, PIECE), (0, 1, 0)]);
    }

    #[test]
    fn a_window_has_a_piece_and_as_many_more_as_fit() {
        let pieces = cut(&[(4, 2), (1, 2), (2, 2), (9, 2)], None, 1);
        let lengths: Vec<usize> = windows(&pieces, 10).iter().map(|window| window.len()).collect();
        assert_eq!(lengths, [2, 1, 1]);
        assert!(windows(&[], 10).is_empty());
    }
}
