// SPDX-License-Identifier: GPL-2.0

//! A look at all slots and at the objects behind them, for debugfs.
//!
//! The slots are copied under their lock, and looked into when it is released, as an object's locks
//! come before it. What is shown of objects can be a moment newer.

use crate::{
    driver::DrmDevice,
    gem::{
        self,
        Object, //
    },
    regs::SLOT_SHIFT,
    slots::{
        Class,
        PageName,
        Slot, //
    }, //
};
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::aref::ARef, //
};

/// What a slot is used for. The characters are those of the map.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    Free,
    Cpu,
    Lent,
    Reserved,
    Pinned,
    Draining,
}

impl Use {
    pub(crate) fn symbol(self) -> char {
        match self {
            Self::Free => '.',
            Self::Cpu => 'c',
            Self::Lent => 'L',
            Self::Reserved => 'R',
            Self::Pinned => 'P',
            Self::Draining => 'd',
        }
    }
}

/// An object, and the slots that show it.
pub(crate) struct Counted {
    pub(crate) object: ARef<Object>,
    /// Name of the first page.
    first: PageName,
    /// Importers keep it in VRAM.
    pinned: bool,
    /// Slots that show pages of it.
    pub(crate) shown: u32,
    /// Those of them that peers hold.
    pub(crate) held: u32,
}

/// The slots of one moment, and the objects that they show.
pub(crate) struct Census {
    slots: KVVec<Slot>,
    /// By the names of their last pages.
    objects: RBTree<PageName, Counted>,
}

impl Census {
    /// Looks at all slots. Takes no lock of an object but that of its state; may sleep.
    pub(crate) fn new(dev: &DrmDevice) -> Result<Self> {
        let mut this = Self {
            slots: dev.aperture.copy()?,
            objects: RBTree::new(),
        };
        for index in 0..this.slots.len() {
            let (page, held) = match this.slots.get(index) {
                Some(&Slot::Idle { page, .. }) => (page, 0),
                Some(&Slot::Peers { page, .. }) => (page, 1),
                _ => continue,
            };
            if let Some(counted) = this.find_or_add(dev, page)? {
                counted.shown += 1;
                counted.held += held;
            }
        }
        Ok(this)
    }

    /// Adds the objects that have importers and no slots.
    pub(crate) fn add_attached(&mut self, dev: &DrmDevice) -> Result {
        let mut attached = KVec::new();
        let mut listed = Ok(());
        dev.for_each_attached(|obj| {
            if listed.is_ok() {
                listed = attached.push(obj.clone(), GFP_KERNEL);
            }
        });
        listed?;
        for obj in attached {
            if self.key(first_page(&obj)?).is_none() {
                self.add(obj)?;
            }
        }
        Ok(())
    }

    /// The objects, in the order of their mmap offsets.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Counted> {
        self.objects.values()
    }

    /// What the slots are used for, in their order.
    pub(crate) fn slots(&self) -> impl ExactSizeIterator<Item = Use> + '_ {
        self.slots.iter().map(|slot| match *slot {
            Slot::Free | Slot::Taken => Use::Free,
            Slot::Idle { .. } => Use::Cpu,
            Slot::Peers {
                class: Class::Lent, ..
            } => Use::Lent,
            Slot::Peers {
                class: Class::Promised,
                page,
                ..
            } => match self.key(page).and_then(|key| self.objects.get(&key)) {
                Some(counted) if counted.pinned => Use::Pinned,
                _ => Use::Reserved,
            },
            Slot::Draining { .. } => Use::Draining,
        })
    }

    /// The key of the object that has the page, if it was found already.
    fn key(&self, page: PageName) -> Option<PageName> {
        let cursor = self.objects.cursor_lower_bound(&page)?;
        let (&last, counted) = cursor.current();
        (counted.first <= page).then_some(last)
    }

    /// The object that has the page; `None` if it is gone meanwhile.
    fn find_or_add(&mut self, dev: &DrmDevice, page: PageName) -> Result<Option<&mut Counted>> {
        let key = match self.key(page) {
            Some(key) => key,
            None => match Object::at_offset(dev, u64::from(page) << SLOT_SHIFT) {
                Some(object) => self.add(object)?,
                None => return Ok(None),
            },
        };
        Ok(self.objects.get_mut(&key))
    }

    fn add(&mut self, object: ARef<Object>) -> Result<PageName> {
        let first = first_page(&object)?;
        let others = gem::page_count(&object)?.saturating_sub(1);
        let last = first.checked_add(others).ok_or(EOVERFLOW)?;
        let pinned = object.state.lock().is_pinned_in_vram();
        let counted = Counted {
            object,
            first,
            pinned,
            shown: 0,
            held: 0,
        };
        self.objects
            .try_create_and_insert(last, counted, GFP_KERNEL)?;
        Ok(last)
    }
}

/// Name of the object's first page.
fn first_page(obj: &Object) -> Result<PageName> {
    Ok(PageName::try_from(gem::mmap_offset(obj)? >> SLOT_SHIFT)?)
}
