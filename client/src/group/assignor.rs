//! Who reads what: the four assignors as pure functions over what members have said; knows no broker.
//!
//! They give what Kafka's assignors of the same names promise, so that members with either kind of client can be led by
//! either. Members are taken in the order of their own names, where they have one, then of their ids.

use std::collections::{BTreeMap, BTreeSet};

use coulee_protocol::kafka::consumer_protocol::{StickyUserData, Subscription, TopicPartitions};

/// How partitions are shared among members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// As evenly as can be, each member keeps what it has as far as that goes, and reads on while the group rebalances:
    /// only partitions that move are stopped (KIP-429). The default.
    #[default]
    CooperativeSticky,
    /// As evenly as can be, each member keeps what it has as far as that goes; all stop while the group rebalances.
    Sticky,
    /// Partitions of all topics in turn.
    RoundRobin,
    /// Of each topic, a row of partitions each: partitions of the same number of several topics stay together.
    Range,
}

/// What members have said, by member: own name, id and subscription.
pub(crate) type Members = BTreeMap<String, (Option<String>, Subscription)>;
/// How many partitions each topic has.
pub(crate) type Counts = BTreeMap<String, u32>;
/// A partition of a topic.
pub(crate) type Place = (String, u32);
/// What each member gets.
pub(crate) type Plan = BTreeMap<String, BTreeSet<Place>>;

impl Assignor {
    /// Every assignor.
    pub const ALL: [Self; 4] = [Self::CooperativeSticky, Self::Sticky, Self::RoundRobin, Self::Range];

    /// Kafka's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CooperativeSticky => "cooperative-sticky",
            Self::Sticky => "sticky",
            Self::RoundRobin => "roundrobin",
            Self::Range => "range",
        }
    }

    /// The assignor of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|assignor| assignor.name() == name)
    }

    /// Whether members read on while the group rebalances.
    #[must_use]
    pub fn is_cooperative(self) -> bool {
        self == Self::CooperativeSticky
    }

    /// Shares the partitions of `counts` among `members`.
    pub(crate) fn assign(self, members: &Members, counts: &Counts) -> Plan {
        match self {
            Self::Range => range(members, counts),
            Self::RoundRobin => round_robin(members, counts),
            Self::Sticky => sticky(members, counts),
            Self::CooperativeSticky => hold_back_moves(members, sticky(members, counts)),
        }
    }
}

/// Members in order, and an empty plan for each.
fn in_order(members: &Members) -> (Vec<&String>, Plan) {
    let mut order: Vec<&String> = members.keys().collect();
    order.sort_by_key(|id| {
        let (instance, _) = &members[*id];
        (instance.is_none(), instance.clone(), (*id).clone())
    });
    (order, members.keys().map(|id| (id.clone(), BTreeSet::new())).collect())
}

fn wants(members: &Members, id: &str, topic: &str) -> bool {
    members.get(id).is_some_and(|(_, subscription)| subscription.topics.iter().any(|own| own == topic))
}

fn give(plan: &mut Plan, id: &str, place: Place) {
    plan.get_mut(id).expect("every member has a place in the plan").insert(place);
}

fn range(members: &Members, counts: &Counts) -> Plan {
    let (order, mut plan) = in_order(members);
    for (topic, count) in counts {
        let readers: Vec<&String> = order.iter().copied().filter(|id| wants(members, id, topic)).collect();
        let Ok(among) = u32::try_from(readers.len()) else { continue };
        let mut next = 0;
        for (at, id) in (0..among).zip(readers) {
            let own = count / among + u32::from(at < count % among);
            (next..next + own).for_each(|partition| give(&mut plan, id, (topic.clone(), partition)));
            next += own;
        }
    }
    plan
}

fn round_robin(members: &Members, counts: &Counts) -> Plan {
    let (order, mut plan) = in_order(members);
    let mut turn = 0;
    for (topic, count) in counts {
        if !order.iter().any(|id| wants(members, id, topic)) {
            continue;
        }
        for partition in 0..*count {
            while !wants(members, order[turn % order.len()], topic) {
                turn += 1;
            }
            give(&mut plan, order[turn % order.len()], (topic.clone(), partition));
            turn += 1;
        }
    }
    plan
}

/// What a member had, and in which generation.
fn owned(subscription: &Subscription) -> (i32, Vec<TopicPartitions>) {
    if !subscription.owned.is_empty() {
        return (subscription.generation, subscription.owned.clone());
    }
    // Kafka's eager clients say so in their assignor's own data.
    let data = subscription.user_data.as_deref().and_then(|data| StickyUserData::decode(data).ok());
    data.map_or((subscription.generation, Vec::new()), |data| (data.generation, data.previous))
}

fn places(partitions: &[TopicPartitions]) -> impl Iterator<Item = Place> {
    partitions.iter().flat_map(|own| {
        let known = own.partitions.iter().filter_map(|partition| u32::try_from(*partition).ok());
        known.map(|partition| (own.topic.clone(), partition))
    })
}

/// Each keeps what it had, what nobody has goes to who has least, and then who has most gives to who has least.
fn sticky(members: &Members, counts: &Counts) -> Plan {
    let (order, mut plan) = in_order(members);
    // Two that claim the same partition: the later generation is right; of the same one, neither can be believed more.
    let mut claims: BTreeMap<Place, (i32, &String)> = BTreeMap::new();
    for id in &order {
        let (generation, had) = owned(&members[*id].1);
        for place in places(&had) {
            let exists = counts.get(&place.0).is_some_and(|count| place.1 < *count);
            let is_later = claims.get(&place).is_none_or(|(other, _)| generation > *other);
            if exists && is_later && wants(members, id, &place.0) {
                claims.insert(place, (generation, id));
            }
        }
    }
    let mut free: BTreeMap<&String, Vec<u32>> = BTreeMap::new();
    for (topic, count) in counts {
        for partition in 0..*count {
            match claims.get(&(topic.clone(), partition)) {
                Some((_, id)) => give(&mut plan, id, (topic.clone(), partition)),
                None => free.entry(topic).or_default().push(partition),
            }
        }
    }
    let readers =
        |topic: &String| -> Vec<&String> { order.iter().copied().filter(|id| wants(members, id, topic)).collect() };
    // Topics that few can read come first: what all can read fills up what is left.
    let mut topics: Vec<(Vec<&String>, &String, Vec<u32>)> =
        free.into_iter().map(|(topic, partitions)| (readers(topic), topic, partitions)).collect();
    topics.sort_by_key(|(readers, topic, _)| (readers.len(), (*topic).clone()));
    for (readers, topic, partitions) in topics {
        for partition in partitions {
            if let Some(least) = readers.iter().min_by_key(|id| plan[**id].len()) {
                give(&mut plan, least, (topic.clone(), partition));
            }
        }
    }
    even_out(members, &order, &mut plan);
    plan
}

/// Moves partitions from who has most to who has least, as long as that makes it more even.
fn even_out(members: &Members, order: &[&String], plan: &mut Plan) {
    loop {
        let mut heavy: Vec<&String> = order.to_vec();
        heavy.sort_by_key(|id| std::cmp::Reverse(plan[*id].len()));
        let least = order.iter().map(|id| plan[*id].len()).min().unwrap_or_default();
        let found = heavy.iter().take_while(|id| plan[**id].len() > least + 1).find_map(|from| {
            plan[*from].iter().rev().find_map(|place| {
                let lighter = order.iter().filter(|to| wants(members, to, &place.0));
                let to = lighter.min_by_key(|to| plan[**to].len())?;
                (plan[*to].len() + 1 < plan[*from].len()).then(|| ((*from).clone(), (*to).clone(), place.clone()))
            })
        });
        let Some((from, to, place)) = found else { return };
        plan.get_mut(&from).expect("it was just looked at").remove(&place);
        give(plan, &to, place);
    }
}

/// What another member still reads is given to nobody yet: it stops first, and the group rebalances once more.
fn hold_back_moves(members: &Members, mut plan: Plan) -> Plan {
    let mut holders: BTreeMap<Place, &String> = BTreeMap::new();
    let mut latest: BTreeMap<Place, i32> = BTreeMap::new();
    for (id, (_, subscription)) in members {
        for place in places(&subscription.owned) {
            if latest.get(&place).is_none_or(|generation| subscription.generation > *generation) {
                latest.insert(place.clone(), subscription.generation);
                holders.insert(place, id);
            }
        }
    }
    for (id, assigned) in &mut plan {
        assigned.retain(|place| holders.get(place).is_none_or(|holder| *holder == id));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift: small, seeded.
    struct Seeded(u64);

    impl Seeded {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) % end
        }
    }

    fn member(topics: &[&str]) -> (Option<String>, Subscription) {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        (None, Subscription { topics, ..Subscription::default() })
    }

    fn members(count: u32, topics: &[&str]) -> Members {
        (0..count).map(|id| (format!("m{id:03}"), member(topics))).collect()
    }

    fn counts(topics: &[(&str, u32)]) -> Counts {
        topics.iter().map(|(topic, count)| ((*topic).to_owned(), *count)).collect()
    }

    /// The members as they come to the next generation.
    fn next(members: &Members, plan: &Plan, generation: i32) -> Members {
        let mut next = members.clone();
        for (id, (_, subscription)) in &mut next {
            let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
            for (topic, partition) in plan.get(id).into_iter().flatten() {
                topics.entry(topic.clone()).or_default().push(*partition as i32);
            }
            let own = |(topic, partitions)| TopicPartitions { topic, partitions };
            subscription.owned = topics.into_iter().map(own).collect();
            subscription.generation = generation;
        }
        next
    }

    fn sizes(plan: &Plan) -> Vec<usize> {
        plan.values().map(BTreeSet::len).collect()
    }

    /// Each partition that someone wants is given exactly once, and only to someone who wants it.
    fn check_complete(members: &Members, counts: &Counts, plan: &Plan) {
        let mut given: BTreeMap<Place, usize> = BTreeMap::new();
        for (id, places) in plan {
            for place in places {
                assert!(wants(members, id, &place.0), "{id} does not read {place:?}");
                *given.entry(place.clone()).or_default() += 1;
            }
        }
        assert!(given.values().all(|count| *count == 1), "twice: {given:?}");
        let wanted = counts.iter().filter(|(topic, _)| members.keys().any(|id| wants(members, id, topic)));
        assert_eq!(given.len(), wanted.map(|(_, count)| *count as usize).sum::<usize>());
    }

    #[test]
    fn range_gives_each_member_a_row_of_each_topic() {
        let plan = range(&members(3, &["a", "b"]), &counts(&[("a", 7), ("b", 2)]));
        let rows: Vec<Vec<(&str, u32)>> =
            plan.values().map(|own| own.iter().map(|(topic, at)| (&**topic, *at)).collect()).collect();
        assert_eq!(rows[0], [("a", 0), ("a", 1), ("a", 2), ("b", 0)]);
        assert_eq!(rows[1], [("a", 3), ("a", 4), ("b", 1)]);
        assert_eq!(rows[2], [("a", 5), ("a", 6)]);
    }

    #[test]
    fn round_robin_goes_over_all_topics_in_turn() {
        let plan = round_robin(&members(2, &["a", "b"]), &counts(&[("a", 3), ("b", 3)]));
        let of = |id: &str| plan[id].iter().map(|(topic, at)| format!("{topic}{at}")).collect::<Vec<_>>().join(" ");
        assert_eq!((of("m000"), of("m001")), ("a0 a2 b1".into(), "a1 b0 b2".into()));
    }

    #[test]
    fn static_members_come_in_the_order_of_their_own_names() {
        let mut members = members(2, &["a"]);
        members.get_mut("m000").unwrap().0 = Some("z".into());
        members.get_mut("m001").unwrap().0 = Some("b".into());
        let plan = range(&members, &counts(&[("a", 1)]));
        assert_eq!(sizes(&plan), [0, 1]);
    }

    #[test]
    fn every_assignor_gives_each_partition_exactly_once_whatever_members_read() {
        let mut seeded = Seeded(0x5eed_a551);
        for round in 0..400 {
            let topics: Vec<String> = (0..1 + seeded.below(5)).map(|topic| format!("t{topic}")).collect();
            let counts: Counts = topics.iter().map(|topic| (topic.clone(), seeded.below(12) as u32)).collect();
            let mut members = Members::new();
            for id in 0..1 + seeded.below(9) {
                let own: Vec<&str> = topics.iter().filter(|_| seeded.below(3) > 0).map(|topic| &**topic).collect();
                members.insert(format!("m{id}"), member(&own));
            }
            for assignor in [Assignor::Range, Assignor::RoundRobin, Assignor::Sticky, Assignor::CooperativeSticky] {
                let plan = assignor.assign(&members, &counts);
                check_complete(&members, &counts, &plan);
                let again = assignor.assign(&members, &counts);
                assert_eq!(plan, again, "round {round}: the same input gives the same plan");
            }
        }
    }

    #[test]
    fn sticky_is_even_and_leaves_everything_where_it_is_when_nothing_changes() {
        let mut seeded = Seeded(0x5eed_571c);
        for _ in 0..200 {
            let (count, partitions) = (1 + seeded.below(20) as u32, seeded.below(100) as u32);
            let (members, counts) = (members(count, &["a"]), counts(&[("a", partitions)]));
            let plan = sticky(&members, &counts);
            let (least, most) = (sizes(&plan).into_iter().min(), sizes(&plan).into_iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{plan:?}");
            assert_eq!(sticky(&next(&members, &plan, 1), &counts), plan);
        }
    }

    #[test]
    fn when_members_come_and_go_only_what_has_to_move_moves() {
        let (all, counts) = (members(50, &["a"]), counts(&[("a", 200)]));
        let before = sticky(&all, &counts);
        // One goes: what it had is shared, nobody else loses anything.
        let mut left = next(&all, &before, 1);
        left.remove("m007");
        let after = sticky(&left, &counts);
        check_complete(&left, &counts, &after);
        assert!(after.iter().all(|(id, places)| before[id].is_subset(places)));
        // One comes: it gets its share, one from each.
        let mut more = next(&left, &after, 2);
        more.insert("new".into(), member(&["a"]));
        let with_new = sticky(&more, &counts);
        check_complete(&more, &counts, &with_new);
        assert_eq!(with_new["new"].len(), 4);
        let lost: usize = after.iter().map(|(id, places)| places.difference(&with_new[id]).count()).sum();
        assert_eq!(lost, 4);
    }

    #[test]
    fn cooperative_gives_nothing_that_another_still_reads_and_settles_in_the_second_round() {
        let mut seeded = Seeded(0x5eed_c00b);
        let counts = counts(&[("a", 40), ("b", 7)]);
        let mut members = members(3, &["a", "b"]);
        let mut owned: Plan = Plan::new();
        for generation in 1..200 {
            if seeded.below(2) == 0 {
                members.insert(format!("x{generation}"), member(&["a", "b"]));
            } else if members.len() > 1 {
                let at = seeded.below(members.len() as u64) as usize;
                let id = members.keys().nth(at).unwrap().clone();
                members.remove(&id);
                owned.remove(&id);
            }
            let first = Assignor::CooperativeSticky.assign(&next(&members, &owned, 2 * generation), &counts);
            for (id, places) in &first {
                for (other, held) in owned.iter().filter(|(other, _)| *other != id) {
                    assert!(places.is_disjoint(held), "{id} was given what {other} still reads");
                }
            }
            let second = Assignor::CooperativeSticky.assign(&next(&members, &first, 2 * generation + 1), &counts);
            check_complete(&members, &counts, &second);
            for (id, places) in &first {
                assert!(places.is_subset(&second[id]), "what was given once stays");
            }
            owned = second;
        }
    }

    #[test]
    fn of_two_that_claim_a_partition_the_later_generation_has_it() {
        let counts = counts(&[("a", 2)]);
        let mut two = members(2, &["a"]);
        let both = BTreeSet::from([("a".to_owned(), 0), ("a".to_owned(), 1)]);
        let plan = Plan::from([("m000".to_owned(), both.clone()), ("m001".to_owned(), both)]);
        two = next(&two, &plan, 3);
        two.get_mut("m001").unwrap().1.generation = 4;
        let plan = hold_back_moves(&two, sticky(&two, &counts));
        assert_eq!((plan["m000"].len(), plan["m001"].len()), (0, 1), "{plan:?}");
    }

    #[test]
    fn names_are_those_of_kafka() {
        assert_eq!(Assignor::ALL.map(Assignor::name), ["cooperative-sticky", "sticky", "roundrobin", "range"]);
        for assignor in Assignor::ALL {
            assert_eq!(Assignor::named(assignor.name()), Some(assignor));
        }
    }
}
