//! Error codes of the command line itself: owns numbers, names and meanings; none ever goes over the wire.
//!
//! Codes below 2,000 are the protocol's (`coulee_protocol::error`). A published number is never reused.

/// Declares the enum and its lookups from one table.
macro_rules! codes {
    ($($number:literal $variant:ident $name:literal $meaning:literal)+) => {
        /// Why a command failed before or beside what a broker said.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub(crate) enum LocalCode {
            $(#[doc = $meaning] $variant = $number,)+
        }

        impl LocalCode {
            /// Every code, in ascending order.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in capitals.
            #[cfg(test)]
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it means, as a sentence.
            #[cfg(test)]
            pub(crate) fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                }
            }
        }
    };
}

codes! {
    2000 Usage "USAGE" "The command line is not one that this program understands."
    2001 ConfigInvalid "CONFIG_INVALID" "The configuration has faults; each is listed with its place."
    2002 FileUnreadable "FILE_UNREADABLE" "A file that was named can't be read."
    2003 BrokerUnreachable "BROKER_UNREACHABLE" "No broker answers at the address."
    2004 NotABroker "NOT_A_BROKER" "What answers at the address does not speak the native protocol."
    2005 StartFailed "START_FAILED" "The broker did not start."
    2006 AddressTaken "ADDRESS_TAKEN" "Another process listens on the address."
    2007 DataDirTaken "DATA_DIR_TAKEN" "Another broker uses the data directory."
    2008 NotAllAcknowledged "NOT_ALL_ACKNOWLEDGED" "Some lines or events were not acknowledged; the others were."
    2009 OutputFailed "OUTPUT_FAILED" "Standard output can't be written."
    2010 NotConfirmed "NOT_CONFIRMED" "A change that destroys data was not confirmed."
    2011 AnswerUnreadable "ANSWER_UNREADABLE" "The broker's answer can't be read."
    2012 CheckFailed "CHECK_FAILED" "A check of the machine failed."
    2013 DataDirUnusable "DATA_DIR_UNUSABLE" "The data directory can't be made, read or written."
    2014 MachineUnfit "MACHINE_UNFIT" "The kernel, its limits or the filesystem do not give what the broker needs."
    2015 Interrupted "INTERRUPTED" "The command was interrupted before its end."
    2016 Stopped "STOPPED" "The broker has stopped before everything was written; what was acknowledged is safe."
    2017 DataDamaged "DATA_DAMAGED" "Something that was durable in the data directory can't be read."
    2018 ProofViolated "PROOF_VIOLATED" "What the broker has acknowledged is not what it serves."
}

impl LocalCode {
    /// Its number.
    pub(crate) fn number(self) -> u16 {
        self as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_2000_and_ascend() {
        assert!(LocalCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        assert!(LocalCode::ALL.iter().all(|code| code.number() >= 2_000 && code.meaning().ends_with('.')));
    }
}
