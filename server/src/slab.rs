//! Things with keys that are never mistaken for those of an earlier thing in the same place; knows nothing of them.

/// Place in the low 32 bits, generation in the 31 above: never `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub u64);

impl Key {
    /// The place.
    #[must_use]
    pub(crate) const fn index(self) -> u32 {
        self.0 as u32
    }

    const fn new(index: u32, generation: u32) -> Self {
        Self(index as u64 | (generation as u64) << 32)
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    thing: Option<T>,
}

/// The things.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Things in it.
    #[must_use]
    pub(crate) const fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Puts a thing in and answers its key.
    pub(crate) fn insert(&mut self, thing: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, thing: None });
            u32::try_from(self.places.len() - 1).expect("places are bounded by the limits of who uses them")
        });
        let place = &mut self.places[index as usize];
        place.thing = Some(thing);
        Key::new(index, place.generation)
    }

    /// Takes a thing out; its key is dead from now on.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index() as usize)?;
        if Key::new(key.index(), place.generation) != key {
            return None;
        }
        let thing = place.thing.take()?;
        place.generation = (place.generation + 1) & 0x7fff_ffff;
        self.free.push(key.index());
        Some(thing)
    }

    /// The thing with this key.
    pub(crate) fn find(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index() as usize)?;
        (Key::new(key.index(), place.generation) == key).then_some(place.thing.as_mut()).flatten()
    }

    /// The key of the thing in a place.
    #[must_use]
    pub(crate) fn key_at(&self, index: u32) -> Option<Key> {
        let place = self.places.get(index as usize)?;
        place.thing.as_ref().map(|_| Key::new(index, place.generation))
    }

    /// All things.
    pub(crate) fn things(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.thing.as_ref())
    }

    /// Keys of all things.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        (0..)
            .zip(&self.places)
            .filter(|(_, place)| place.thing.is_some())
            .map(|(at, place)| Key::new(at, place.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_own_thing_only_also_when_the_place_is_used_again() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        let c = slab.insert("c");
        assert_eq!(c.index(), a.index());
        assert_eq!(slab.find(a), None);
        assert_eq!(slab.find(c), Some(&mut "c"));
        assert_eq!(slab.key_at(b.index()), Some(b));
        assert_eq!(slab.keys().collect::<Vec<_>>(), [c, b]);
        assert_eq!(slab.len(), 2);
    }
}
