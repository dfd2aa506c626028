//! TensorBoard event files.
//!
//! An event file is a sequence of records (TFRecord): length, masked CRC-32C of the length, data, masked CRC-32C of the
//! data. The data of each is a protocol buffer `Event` (`tensorboard/compat/proto/event.proto`), of which scalars need
//! so little that it is written by hand here.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tpgm_core::TensorScalars;

use super::error::Result;
use super::{Telemetry, fields};
use crate::files::io;

/// Writes scalars that TensorBoard shows.
///
/// A folder is a run; each writer adds a file of its own to it. Tags are as given; tensors have `norm/<tensor>`,
/// `radius/<tensor>`, `ratio/<tensor>` and `fire_rate/<tensor>`, so that TensorBoard shows them in four sections. Values
/// are rounded to f32, the format's type.
#[derive(Debug)]
pub struct TensorBoardWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl TensorBoardWriter {
    /// Adds a file to the folder `dir`, which is created.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the file or folder.
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let (path, file) = new_file(dir)?;
        let mut writer = Self { path, out: BufWriter::new(file) };
        writer.event(|event| event.bytes(FILE_VERSION, b"brain.Event:2"))?;
        Ok(writer)
    }

    /// As [`create`](Self::create), for a run that goes on: `next_step` is the first step that will be logged. Readers
    /// drop what earlier files of the folder have for that step and later ones; the files stay as they are.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn resume(dir: impl Into<PathBuf>, next_step: u64) -> Result<Self> {
        let mut writer = Self::create(dir)?;
        writer.event(|event| {
            event.varint(STEP, next_step);
            event.message(SESSION_LOG, |log| log.varint(SESSION_STATUS, SESSION_START));
        })?;
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    fn event(&mut self, content: impl FnOnce(&mut Message)) -> Result<()> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut event = Message::default();
        event.double(WALL_TIME, time.as_secs_f64());
        content(&mut event);
        Ok(self.out.write_all(&record(&event.0)).map_err(io(&self.path))?)
    }
}

impl Telemetry for TensorBoardWriter {
    fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.event(|event| {
            event.varint(STEP, step);
            event.message(SUMMARY, |summary| summary.message(VALUE, |v| scalar_value(v, tag, value)));
        })
    }

    /// One event for all tensors.
    fn tensors(&mut self, step: u64, tensors: &[(String, TensorScalars)]) -> Result<()> {
        self.event(|event| {
            event.varint(STEP, step);
            event.message(SUMMARY, |summary| {
                for (tensor, scalars) in tensors {
                    for (field, value) in fields(scalars) {
                        let tag = format!("{field}/{tensor}");
                        summary.message(VALUE, |v| scalar_value(v, &tag, value));
                    }
                }
            });
        })
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush().map_err(io(&self.path))?)
    }
}

/// Creates a file whose name sorts after those of earlier writers: readers take a folder's files in that order.
fn new_file(dir: PathBuf) -> Result<(PathBuf, File)> {
    let mut time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    loop {
        // Readers want `tfevents` in the name. The usual host name has no use here.
        let name = format!("events.out.tfevents.{:010}.{:09}", time.as_secs(), time.subsec_nanos());
        let path = dir.join(name);
        match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => time += Duration::from_nanos(1),
            file => return Ok((path.clone(), file.map_err(io(path))?)),
        }
    }
}

// Field numbers of `Event`.
const WALL_TIME: u32 = 1;
const STEP: u32 = 2;
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;
// Of `SessionLog`, and a value of its enumeration.
const SESSION_STATUS: u32 = 1;
const SESSION_START: u64 = 1;
// Of `Summary`.
const VALUE: u32 = 1;
// Of `Summary.Value`.
const TAG: u32 = 1;
const SIMPLE_VALUE: u32 = 2;

fn scalar_value(message: &mut Message, tag: &str, value: f64) {
    message.bytes(TAG, tag.as_bytes());
    message.float(SIMPLE_VALUE, value as f32);
}

/// A protocol buffer being written: fields, each a key (`number << 3 | wire type`) and a value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u32, content: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        content(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.raw_varint(u64::from(field << 3 | wire_type));
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// Frames data as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// The format masks its checksums, so that data which hold checksums themselves do not look right by accident.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, as its definition has it.
    fn slow_crc(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in data {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_checksum_is_castagnoli_masked() {
        // The check value of the CRC catalogs, which also vouches for the slow version.
        assert_eq!(slow_crc(b"123456789"), 0xe306_9283);
        for data in [&b""[..], b"123456789", b"tpgm"] {
            let crc = slow_crc(data);
            assert_eq!(masked_crc(data), crc.rotate_right(15).wrapping_add(0xa282_ead8));
        }
    }

    #[test]
    fn bytes_are_those_of_the_specification() {
        let mut event = Message::default();
        event.double(WALL_TIME, 1.0);
        event.varint(STEP, 300);
        event.message(SUMMARY, |summary| summary.message(VALUE, |v| scalar_value(v, "loss", 0.5)));
        // Encoded by hand.
        let data = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..], // field 1, 8 bytes: 1.0
            &[0x10, 0xac, 0x02],                       // field 2, varint: 300
            &[0x2a, 13],                               // field 5, 13 bytes: summary
            &[0x0a, 11],                               // field 1, 11 bytes: value
            &[0x0a, 4, b'l', b'o', b's', b's'],        // field 1, 4 bytes: tag
            &[0x15, 0, 0, 0, 0x3f],                    // field 2, 4 bytes: 0.5
        ]
        .concat();
        assert_eq!(event.0, data);

        let mask = |data: &[u8]| slow_crc(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
        let length = [27, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(record(&data), [&length[..], &mask(&length), &data, &mask(&data)].concat());
    }
}
