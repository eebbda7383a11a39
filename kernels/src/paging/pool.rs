//! Pages of the layers that have one window, or none: in whose tables they are, and which may be taken from there.
//!
//! A page in use is in the tables of some sequences, in all of them at the same place. It is live for a sequence if a row
//! to come may look at it: with a window, positions fall behind. A page that is live for nobody is spare: it stays where
//! it is, so that texts can be gone on with from earlier positions, until its room is needed; then the one that is spare
//! for longest is taken out of all tables. Tables and counts are made once.

use crate::backend::DeviceError;
use crate::cpu::memory::room;

/// In the place of a page that is not there.
const NONE: u32 = u32::MAX;

#[derive(Default)]
struct Table {
    pages: Vec<u32>,
    /// Pages from this place on are live.
    first_live: usize,
    /// Positions before this one were never there, though a page may be.
    from: usize,
}

#[derive(Clone, Copy, Default)]
struct Page {
    /// Tables that it is in.
    n_tables: u32,
    /// Of them, those that it is live for.
    n_live: u32,
    /// Its place in them.
    place: u32,
    /// When it became spare.
    spare_since: u64,
}

/// The pages of some layers.
pub(crate) struct Pool {
    window: Option<usize>,
    page_tokens: usize,
    pages: Vec<Page>,
    free: Vec<u32>,
    n_spare: usize,
    clock: u64,
    tables: Vec<Table>,
}

impl Pool {
    /// `n_pages` pages for `n_tables` sequences of up to `most_pages` each.
    pub(crate) fn try_new(
        window: Option<usize>,
        page_tokens: usize,
        n_pages: usize,
        n_tables: usize,
        most_pages: usize,
    ) -> Result<Self, DeviceError> {
        let mut free = room(n_pages)?;
        free.extend((0..n_pages as u32).rev());
        let mut pages = room(n_pages)?;
        pages.resize(n_pages, Page::default());
        let mut tables = room(n_tables)?;
        for _ in 0..n_tables {
            tables.push(Table { pages: room(most_pages)?, ..Table::default() });
        }
        Ok(Self { window, page_tokens, pages, free, n_spare: 0, clock: 0, tables })
    }

    pub(crate) fn window(&self) -> Option<usize> {
        self.window
    }

    /// The pages of a sequence, place by place; no page where its positions fell behind the window.
    pub(crate) fn table(&self, slot: usize) -> &[u32] {
        self.tables.get(slot).map_or(&[], |table| &table.pages)
    }

    /// Pages that nobody needs.
    pub(crate) fn n_free(&self) -> usize {
        self.free.len() + self.n_spare
    }

    /// First position that is live for a text of `len`: one more than rows to come look at, so that the last one can be
    /// run again.
    fn live_from(&self, len: usize) -> usize {
        self.window.map_or(0, |window| len.saturating_sub(window))
    }

    /// Whether positions are all there.
    pub(crate) fn has(&self, slot: usize, from: usize, to: usize) -> bool {
        let table = &self.tables[slot];
        let places = from / self.page_tokens..to.div_ceil(self.page_tokens);
        from >= to
            || from >= table.from && table.pages.get(places).is_some_and(|pages| pages.iter().all(|page| *page != NONE))
    }

    /// Most tokens, up to `tokens`, that a text can be gone on with after: what the next row looks at is there.
    pub(crate) fn resumable(&self, slot: usize, tokens: usize) -> usize {
        let Some(window) = self.window else { return tokens };
        let mut tokens = tokens;
        while tokens > 0 {
            // With the last position there is the page that is written next.
            let from = (tokens + 1).saturating_sub(window).min(tokens - 1);
            if self.has(slot, from, tokens) {
                break;
            }
            // Before the last page that is not there, if any is not.
            let (table, first) = (&self.tables[slot], from / self.page_tokens);
            let last = tokens.div_ceil(self.page_tokens).min(table.pages.len());
            let missing = (first..last).rev().find(|place| table.pages[*place] == NONE);
            tokens = missing.map_or(0, |place| place * self.page_tokens);
        }
        tokens
    }

    /// Pages that room for positions `len..tokens` takes, with the copy of the page that is written next if it is shared.
    pub(crate) fn needed(&self, slot: usize, len: usize, tokens: usize) -> usize {
        let table = &self.tables[slot].pages;
        let n_more = tokens.div_ceil(self.page_tokens).saturating_sub(table.len());
        n_more + usize::from(tokens > len && self.is_shared(slot, len / self.page_tokens))
    }

    /// Whether the page at a place is in another table as well.
    pub(crate) fn is_shared(&self, slot: usize, place: usize) -> bool {
        let page = self.tables[slot].pages.get(place).filter(|page| **page != NONE);
        page.is_some_and(|page| self.pages[*page as usize].n_tables > 1)
    }

    /// Lengthens a table to room for `tokens`; false if there are not as many pages.
    pub(crate) fn grow(&mut self, slot: usize, tokens: usize) -> bool {
        while self.tables[slot].pages.len() < tokens.div_ceil(self.page_tokens) {
            let Some(page) = self.take(self.tables[slot].pages.len()) else { return false };
            self.tables[slot].pages.push(page);
        }
        true
    }

    /// Lets a table, which holds nothing yet, begin at `position`: earlier ones are never looked at.
    pub(crate) fn begin_at(&mut self, slot: usize, position: usize) {
        let table = &mut self.tables[slot];
        table.from = table.from.max(position);
        while table.pages.len() < position / self.page_tokens {
            table.pages.push(NONE);
        }
    }

    /// Takes a page in the place of one that others share: the shared one, whose bytes are to be copied, and its own.
    /// `None` if there is none left.
    pub(crate) fn part_with(&mut self, slot: usize, place: usize) -> Option<(u32, u32)> {
        let own = self.take(place)?;
        let shared = std::mem::replace(&mut self.tables[slot].pages[place], own);
        self.leave(shared, place >= self.tables[slot].first_live);
        Some((shared, own))
    }

    /// A text has `len` tokens now: pages behind the window of the next row are live no longer, others are again.
    pub(crate) fn set_len(&mut self, slot: usize, len: usize) {
        let live_from = self.live_from(len) / self.page_tokens;
        let Table { pages, first_live, .. } = &self.tables[slot];
        let (old, new) = (*first_live, live_from.min(pages.len()));
        for place in old.min(new)..old.max(new) {
            let page = self.tables[slot].pages[place];
            if page == NONE {
                continue;
            }
            let of_page = &mut self.pages[page as usize];
            if new < old {
                self.n_spare -= usize::from(of_page.n_live == 0);
                of_page.n_live += 1;
            } else {
                of_page.n_live -= 1;
                self.note_spare(page);
            }
        }
        self.tables[slot].first_live = new;
    }

    /// Takes pages that hold nothing of the first `len` positions out of a table.
    pub(crate) fn truncate(&mut self, slot: usize, len: usize) {
        let n_pages = len.div_ceil(self.page_tokens);
        while self.tables[slot].pages.len() > n_pages
            && let Some(page) = self.tables[slot].pages.pop()
        {
            let is_live = self.tables[slot].pages.len() >= self.tables[slot].first_live;
            if page != NONE {
                self.leave(page, is_live);
            }
        }
        let table = &mut self.tables[slot];
        table.first_live = table.first_live.min(table.pages.len());
        if len == 0 {
            table.from = 0;
        }
        self.set_len(slot, len);
    }

    /// Puts the pages of the first `len` positions into another table, which is empty.
    pub(crate) fn fork(&mut self, from: usize, to: usize, len: usize) {
        let n_pages = len.div_ceil(self.page_tokens);
        let first_live = (self.live_from(len) / self.page_tokens).min(n_pages);
        for place in 0..n_pages {
            let page = self.tables[from].pages[place];
            self.tables[to].pages.push(page);
            if page == NONE {
                continue;
            }
            let of_page = &mut self.pages[page as usize];
            of_page.n_tables += 1;
            if place >= first_live {
                self.n_spare -= usize::from(of_page.n_live == 0);
                of_page.n_live += 1;
            }
        }
        self.tables[to].first_live = first_live;
        self.tables[to].from = self.tables[from].from;
    }

    /// A page for a place of one table, live there.
    fn take(&mut self, place: usize) -> Option<u32> {
        let page = self.free.pop().or_else(|| self.take_spare())?;
        self.pages[page as usize] = Page { n_tables: 1, n_live: 1, place: place as u32, spare_since: 0 };
        Some(page)
    }

    fn take_spare(&mut self) -> Option<u32> {
        if self.n_spare == 0 {
            return None;
        }
        let is_spare = |page: &Page| page.n_live == 0 && page.n_tables > 0;
        let spare = self.pages.iter().enumerate().filter(|(_, page)| is_spare(page));
        let (page, place) = spare.min_by_key(|(_, page)| page.spare_since).map(|(page, of)| (page, of.place))?;
        for table in &mut self.tables {
            if let Some(found) = table.pages.get_mut(place as usize).filter(|found| **found == page as u32) {
                *found = NONE;
            }
        }
        self.n_spare -= 1;
        Some(page as u32)
    }

    /// One table has the page no longer.
    fn leave(&mut self, page: u32, was_live: bool) {
        let of_page = &mut self.pages[page as usize];
        of_page.n_tables -= 1;
        if was_live {
            of_page.n_live -= 1;
            self.note_spare(page);
        }
        let of_page = &self.pages[page as usize];
        if of_page.n_tables == 0 {
            self.n_spare -= 1;
            self.free.push(page);
        }
    }

    /// Counts a page as spare if it was live for the last time.
    fn note_spare(&mut self, page: u32) {
        let of_page = &mut self.pages[page as usize];
        if of_page.n_live == 0 {
            self.clock += 1;
            of_page.spare_since = self.clock;
            self.n_spare += 1;
        }
    }

    /// Counts made anew from the tables: pages in none, and pages that are live for none.
    #[cfg(test)]
    pub(crate) fn recounted(&self) -> (usize, usize) {
        let mut counts = vec![(0, 0); self.pages.len()];
        for table in &self.tables {
            for (place, page) in table.pages.iter().enumerate().filter(|(_, page)| **page != NONE) {
                counts[*page as usize].0 += 1;
                counts[*page as usize].1 += u32::from(place >= table.first_live);
                assert_eq!(self.pages[*page as usize].place as usize, place);
            }
        }
        for (page, count) in self.pages.iter().zip(&counts) {
            assert!(count.0 == 0 || (page.n_tables, page.n_live) == *count);
        }
        let n_free = counts.iter().filter(|count| count.0 == 0).count();
        let n_spare = counts.iter().filter(|count| count.0 > 0 && count.1 == 0).count();
        assert_eq!((n_free, n_spare), (self.free.len(), self.n_spare));
        (n_free, n_spare)
    }
}

/// Numbers of a pool in which no sequence is open.
#[cfg(test)]
pub(crate) fn is_empty(pool: &Pool) -> bool {
    pool.n_spare == 0 && pool.free.len() == pool.pages.len()
}
