//! What shards say to each other, sent and taken: questions, answers, orders, connections; decides nothing.

use super::answers::Come;
use super::{News, ShardServer};
use crate::connection::{Connection, Stage};
use crate::limits::CYCLE_MESSAGES_MAX;
use crate::message::{Message, Question, Report};
use crate::pending::{Asker, Pending};
use crate::slab::Key;
use coulee_core::block::Block;
use coulee_core::catalog::record::CatalogRecord;
use coulee_core::controller::{CATALOG_REQUEST, Effect as ControllerEffect, Event, Told};
use coulee_core::log::Incoming;
use coulee_core::partition::Acks;
use coulee_core::shard::{Command, Effect, RequestId};
use coulee_protocol::ids::ShardId;
use std::rc::Rc;
use tracing::{error, info, warn};

impl ShardServer {
    /// Sends a message to a shard, this one included.
    pub(super) fn send_to(&mut self, shard: ShardId, message: Message) {
        self.outbox[usize::from(shard.0)].push_back(message);
    }

    /// Moves what waits into the mesh, as far as there is room, and wakes who gets something.
    pub(super) fn send_messages(&mut self) {
        let own = usize::from(self.id().0);
        for (to, messages) in self.outbox.iter_mut().enumerate().filter(|(to, _)| *to != own) {
            while let Some(message) = messages.pop_front() {
                if let Err(message) = self.parts.mesh.send(to, message) {
                    messages.push_front(message);
                    break;
                }
            }
        }
        self.parts.mesh.wake_peers();
    }

    pub(super) fn take_messages(&mut self) -> bool {
        let mut taken = 0;
        let own = self.id();
        while let Some(message) = self.outbox[usize::from(own.0)].pop_front() {
            self.hear(own, message);
            taken += 1;
        }
        while taken < CYCLE_MESSAGES_MAX
            && let Some((from, message)) = self.parts.mesh.receive()
        {
            let from = ShardId(u16::try_from(from).expect("shards are counted in 16 bits"));
            self.hear(from, message);
            taken += 1;
        }
        taken > 0
    }

    fn hear(&mut self, from: ShardId, message: Message) {
        match message {
            Message::Connection(..) if self.is_out_of_room() => self.counts.connections_refused += 1,
            Message::Connection(socket, greeting) => {
                let mut connection = Box::new(Connection::new(socket, Stage::Open));
                connection.client_name.clone_from(&greeting.client_name);
                self.greet(&mut connection, &greeting);
                let key = self.adopt(connection);
                self.flush_soon(key);
            }
            Message::Ask(number, question) => {
                let request = self.expect_answer(Asker::Shard(from, number));
                self.ask(self.id(), request, question);
            }
            Message::Hurry(number) => self.hurry(from, number),
            Message::Answer(request, answer) => self.answered(request, answer.into()),
            Message::Report(report) => self.control(match report {
                Report::Started => Event::ShardStarted,
                Report::Opened(uid, opened) => Event::Opened(uid, opened),
                Report::Offline(uid) => Event::Offline(uid),
                Report::Deleted(uid) => Event::Deleted(uid),
            }),
            Message::Change(number, change) => {
                let request = self.expect_answer(Asker::Shard(from, number));
                self.control(Event::Change(request, change));
            }
            Message::Changed(request, result) => self.changed(request, result),
            Message::Order(order) => self.parts.core.command(order.into()),
            Message::Told(told) => self.told(&told),
        }
    }

    /// Hears news of the catalog.
    fn told(&mut self, told: &Told) {
        self.view.hear(told);
        if let Told::Record(CatalogRecord::Deleted { topic_id }) = told {
            self.parts.core.command(Command::TopicDeleted(*topic_id));
        }
        if self.view.is_settled() && !std::mem::replace(&mut self.told_ready, true) {
            self.parts.core.command(Command::Topics(self.view.catalog().topic_ids().collect()));
            let ready = News::Ready(self.id());
            self.tell(ready);
        }
    }

    pub(super) fn report(&mut self, report: Report) {
        self.send_to(ShardId(0), Message::Report(report));
    }

    /// A number for a request of someone other than a connection.
    pub(super) fn expect_answer(&mut self, asker: Asker) -> RequestId {
        let pending = Pending::new(asker, Default::default(), self.clock.monotonic_us());
        RequestId(self.pending.insert(pending).0)
    }

    /// Puts a question to the shard that it is for.
    pub(super) fn ask(&mut self, shard: ShardId, request: RequestId, question: Question) {
        if shard != self.id() {
            self.counts.forwarded_requests += 1;
            return self.send_to(shard, Message::Ask(request, question));
        }
        let command = match question {
            Question::Produce(partition, acks, batch) => {
                let batch = Incoming::Shared(Block::from_owner(Rc::new(batch)));
                if acks == Acks::None {
                    self.pending.remove(Key(request.0));
                }
                Command::Produce { request, partition, acks, batch }
            }
            Question::Fetch(spec) => Command::Fetch(request, spec),
            Question::Offset(uid, query) => Command::ListOffsets(request, uid, query),
            Question::Describe(uid) => Command::Describe(request, uid),
            Question::Group(asked) => Command::Group(request, asked),
            Question::Groups => Command::ListGroups(request),
            // It is asked in messages only: no connection is being served now.
            Question::Stats => return self.answered(request, Come::Stats(Box::new(self.stats()))),
        };
        self.parts.core.command(command);
    }

    /// Has the fetch that a shard has asked for under its `number` answered now.
    fn hurry(&mut self, shard: ShardId, number: RequestId) {
        let meant = Asker::Shard(shard, number);
        let keys: Vec<Key> = self.pending.keys().collect();
        for key in keys {
            if self.pending.find(key).is_some_and(|pending| pending.asker == meant) {
                self.parts.core.command(Command::Hurry(RequestId(key.0)));
            }
        }
    }

    /// Takes what the core has decided.
    pub(super) fn take_effects(&mut self) -> bool {
        let effects = self.parts.core.take_effects();
        let worked = !effects.is_empty();
        for effect in effects {
            match effect {
                Effect::Produced(CATALOG_REQUEST, result) => self.control(Event::Produced(result)),
                Effect::Fetched(CATALOG_REQUEST, parts) => self.control(Event::Fetched(parts)),
                Effect::Produced(request, result) => self.answered(request, Come::Produced(result)),
                Effect::Fetched(request, parts) => self.answered(request, Come::Fetched(parts)),
                Effect::Listed(request, listed) => self.answered(request, Come::Listed(listed)),
                Effect::Described(request, described) => {
                    self.answered(request, Come::Described(described));
                }
                Effect::Group(request, answer) => self.answered(request, Come::Group(answer)),
                Effect::Groups(request, groups) => self.answered(request, Come::Groups(groups)),
                Effect::Opened(uid, opened) => {
                    match &opened {
                        Ok(opened) if !opened.damage.is_empty() => {
                            warn!(partition = uid.0, damage = ?opened.damage, "part of the log is damaged");
                        }
                        Ok(_) => {}
                        Err(reason) => error!(partition = uid.0, %reason, "a partition cannot be opened"),
                    }
                    self.report(Report::Opened(uid, opened));
                }
                Effect::Offline(uid) => {
                    error!(partition = uid.0, "a write or sync has failed: the partition is offline until a restart");
                    self.report(Report::Offline(uid));
                }
                Effect::Deleted(uid, result) => {
                    if let Err(reason) = result {
                        warn!(partition = uid.0, %reason, "files of a deleted partition are left for the next start");
                    }
                    self.report(Report::Deleted(uid));
                }
                Effect::Stopped => self.core_stopped(),
            }
        }
        worked
    }

    /// Gives the controller, which is on shard 0, an event.
    pub(super) fn control(&mut self, event: Event) {
        let now = self.now();
        let Some(controller) = &mut self.parts.controller else { return };
        for effect in controller.step(now, event) {
            match effect {
                ControllerEffect::Own(command) => self.parts.core.command(command),
                ControllerEffect::Order(shard, order) => self.send_to(shard, Message::Order(order)),
                ControllerEffect::Tell(told) => {
                    for shard in 0..self.shards() {
                        self.send_to(ShardId(shard), Message::Told(told.clone()));
                    }
                }
                ControllerEffect::Changed(request, result) => self.changed(request, result),
                ControllerEffect::Foreign(uid) => {
                    warn!(partition = uid.0, "a partition's directory that the catalog does not know is left alone");
                }
                ControllerEffect::Failed(reason) => {
                    error!(%reason, "the broker cannot start");
                    self.tell(News::Failed(reason.to_string()));
                }
            }
        }
    }

    pub(super) fn stop_controller(&mut self) {
        if self.parts.controller.is_some() {
            info!("no more changes of the catalog");
            self.control(Event::Stop);
        }
    }
}
