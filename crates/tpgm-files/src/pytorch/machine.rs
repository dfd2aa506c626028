//! Reads a pickle.
//!
//! A pickle is a program for a stack machine. Here it only builds a tree: no class is looked up and nothing is called, a
//! call is written down. candle's reader does the same, but copies an object whenever it is mentioned again and reserves
//! whatever a length says, so that a file of a few bytes can take all memory; and it forgets what is put into a dictionary
//! after its first mention. Objects are numbers into one list here, so every one of them takes at least a byte of the file.

use std::collections::HashMap;

use super::pickle::{Id, Object, Pickle};

/// A pickle of more than this is no description of tensors.
const MAX_OBJECTS: usize = 4_000_000;

/// Reads the pickle that `bytes` begin with, and how many bytes it has.
pub(super) fn parse(bytes: &[u8]) -> Result<(Pickle, usize), String> {
    let mut machine = Machine {
        rest: bytes,
        pickle: Pickle { objects: vec![Object::Other], root: OTHER },
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
    };
    while machine.step().map_err(|problem| {
        format!("its pickle makes no sense at byte {}: {problem}", bytes.len() - machine.rest.len())
    })? {}
    let used = bytes.len() - machine.rest.len();
    Ok((machine.pickle, used))
}

/// All objects without meaning are this one.
const OTHER: Id = 0;

struct Machine<'a> {
    rest: &'a [u8],
    pickle: Pickle,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// False at the end.
    fn step(&mut self) -> Step<bool> {
        let [code] = self.array()?;
        match code {
            // PROTO, FRAME.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => {
                self.pickle.root = self.pop()?;
                return Ok(false);
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = *self.stack.last().ok_or("nothing to repeat")?;
                self.stack.push(top);
            }
            // NONE, NEWTRUE, NEWFALSE: booleans are integers in Python.
            b'N' => self.stack.push(OTHER),
            0x88 => self.push(Object::Int(1))?,
            0x89 => self.push(Object::Int(0))?,
            b'G' => {
                self.take(8)?;
                self.stack.push(OTHER);
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Object::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Object::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Object::Int(value.into()))?;
            }
            0x8a => {
                let length = self.short()?;
                self.long(length)?;
            }
            0x8b => {
                let length = self.length4()?;
                self.long(length)?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and the strings of Python 2.
            b'X' | b'T' => {
                let length = self.length4()?;
                self.text(length)?;
            }
            0x8c | b'U' => {
                let length = self.short()?;
                self.text(length)?;
            }
            0x8d => {
                let length = self.length8()?;
                self.text(length)?;
            }
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8.
            b'B' => {
                let length = self.length4()?;
                self.bytes(length)?;
            }
            b'C' => {
                let length = self.short()?;
                self.bytes(length)?;
            }
            0x8e | 0x96 => {
                let length = self.length8()?;
                self.bytes(length)?;
            }
            b')' => self.push(Object::Tuple(vec![]))?,
            0x85..=0x87 => {
                let items = self.last(usize::from(code - 0x84))?;
                self.push(Object::Tuple(items))?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items))?;
            }
            b']' => self.push(Object::List(vec![]))?,
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.extend_list(&items)?;
            }
            b'}' => self.push(Object::Dict(vec![]))?,
            b's' => {
                let pair = self.last(2)?;
                self.extend_dict(&pair)?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.extend_dict(&pairs)?;
            }
            // EMPTY_SET, ADDITEMS, FROZENSET.
            0x8f => self.stack.push(OTHER),
            0x90 => drop(self.since_mark()?),
            0x91 => {
                self.since_mark()?;
                self.stack.push(OTHER);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let names = self.last(2)?;
                let (Some(module), Some(name)) = (self.pickle.text(names[0]), self.pickle.text(names[1]))
                else {
                    return Err("a class without a name".to_owned());
                };
                // Both texts could be mentioned many times.
                if module.len() + name.len() > 1000 {
                    return Err("a class with an endless name".to_owned());
                }
                let global = format!("{module}.{name}");
                self.push(Object::Global(global))?;
            }
            // REDUCE and NEWOBJ; NEWOBJ_EX has named arguments too.
            b'R' | 0x81 => {
                let call = self.last(2)?;
                self.call(call[0], call[1])?;
            }
            0x92 => {
                let call = self.last(3)?;
                self.call(call[0], call[1])?;
            }
            b'b' => {
                let state = self.pop()?;
                let top = *self.stack.last().ok_or("nothing to set up")?;
                if let Object::Call { state: slot, .. } = &mut self.pickle.objects[top] {
                    *slot = Some(state);
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Persistent(id))?;
            }
            b'q' => {
                let key = self.short()?;
                self.remember(key)?;
            }
            b'r' => {
                let key = self.length4()?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let key = self.short()?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.length4()?;
                self.recall(key)?;
            }
            code => return Err(format!("unknown instruction {code:#04x}")),
        }
        Ok(true)
    }

    fn call(&mut self, function: Id, args: Id) -> Step<()> {
        // What dictionaries are made by comes with their entries set one by one.
        let object = match self.pickle.global(function) {
            Some("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict") => {
                Object::Dict(vec![])
            }
            _ => Object::Call { function, args, state: None },
        };
        self.push(object)
    }

    fn push(&mut self, object: Object) -> Step<()> {
        if self.pickle.objects.len() >= MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} objects"));
        }
        self.stack.push(self.pickle.objects.len());
        self.pickle.objects.push(object);
        Ok(())
    }

    fn pop(&mut self) -> Step<Id> {
        // A mark is a wall: what lies below it belongs to somebody else.
        let wall = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > wall {
            true => self.stack.pop().ok_or_else(String::new),
            false => Err("its stack is empty".to_owned()),
        }
    }

    /// The last `count` objects, in order.
    fn last(&mut self, count: usize) -> Step<Vec<Id>> {
        let mut items = vec![];
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(items)
    }

    fn since_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn extend_list(&mut self, items: &[Id]) -> Step<()> {
        let top = *self.stack.last().ok_or("no list")?;
        match &mut self.pickle.objects[top] {
            Object::List(list) => list.extend(items),
            // A list of a class of its own.
            Object::Call { .. } => {}
            _ => return Err("items for what is no list".to_owned()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Step<()> {
        let top = *self.stack.last().ok_or("no dictionary")?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".to_owned()) };
        match &mut self.pickle.objects[top] {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            // A dictionary of a class of its own.
            Object::Call { .. } => {}
            _ => return Err("entries for what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, key: usize) -> Step<()> {
        let top = *self.stack.last().ok_or("nothing to remember")?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Step<()> {
        let id = self.memo.get(&key).ok_or_else(|| format!("object {key} was not made before"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn long(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        let mut wide = [if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 }; 8];
        match wide.get_mut(..length) {
            Some(low) => {
                low.copy_from_slice(bytes);
                self.push(Object::Int(i64::from_le_bytes(wide)))
            }
            // The magic number of old files, and random generators.
            None => {
                self.stack.push(OTHER);
                Ok(())
            }
        }
    }

    fn text(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        self.push(Object::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn bytes(&mut self, length: usize) -> Step<()> {
        self.take(length)?;
        self.stack.push(OTHER);
        Ok(())
    }

    fn line(&mut self) -> Step<String> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or("it is cut off")?;
        let line = self.take(end)?;
        self.take(1)?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    fn short(&mut self) -> Step<usize> {
        let [length] = self.array()?;
        Ok(length.into())
    }

    fn length4(&mut self) -> Step<usize> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|error| error.to_string())
    }

    fn length8(&mut self) -> Step<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|error| error.to_string())
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>().ok_or("it is cut off")?;
        self.rest = rest;
        Ok(*first)
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let (first, rest) = self.rest.split_at_checked(length).ok_or("it is cut off")?;
        self.rest = rest;
        Ok(first)
    }
}
