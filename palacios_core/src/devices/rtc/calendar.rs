// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Gregorian calendar, for years 0 to 9999.

/// Seconds in a day.
pub(super) const DAY_S: i64 = 86_400;
/// Days of 400 years.
const CYCLE_DAYS: i64 = 146_097;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1 to 7; 1 is Sunday.
    pub(super) weekday: u8,
}

/// The days before month `from_march` of a year that begins with March, which puts the leap day last.
const fn days_before_month(from_march: i64) -> i64 {
    (from_march.wrapping_mul(153).wrapping_add(2)) / 5
}

/// The date `days` after 1 January 1970.
pub(super) const fn date_of(days: i64) -> Date {
    let from_march = days.wrapping_add(EPOCH_DAYS);
    let cycle = from_march.div_euclid(CYCLE_DAYS);
    let day = from_march.rem_euclid(CYCLE_DAYS);
    // Take the leap days out: one in 4 years, not in 100, but in 400.
    let common = day
        .wrapping_sub(day / 1_460)
        .wrapping_add(day / 36_524)
        .wrapping_sub(day / 146_096);
    let year = common / 365;
    let of_year = day.wrapping_sub(days_of_years(year));
    let month = (of_year.wrapping_mul(5).wrapping_add(2)) / 153;
    let of_month = of_year.wrapping_sub(days_before_month(month));
    let january = month >= 10;
    let month = if january {
        month.wrapping_sub(9)
    } else {
        month.wrapping_add(3)
    };
    Date {
        year: cycle
            .wrapping_mul(400)
            .wrapping_add(year)
            .wrapping_add(january as i64),
        month: month as u8,
        day: of_month.wrapping_add(1) as u8,
        // 1 January 1970 was a Thursday.
        weekday: days.wrapping_add(4).rem_euclid(7) as u8 + 1,
    }
}

/// Days of the first `years` years of a cycle.
const fn days_of_years(years: i64) -> i64 {
    let leap = (years / 4).wrapping_sub(years / 100);
    years.wrapping_mul(365).wrapping_add(leap)
}

/// Days from 1 January 1970 to a date, whose weekday does not count. A day that its month does not have is one of the
/// next.
pub(super) const fn days_of(year: i64, month: u8, day: u8) -> i64 {
    let (month, day) = (month as i64, day as i64);
    let january = month <= 2;
    let year = year.wrapping_sub(january as i64);
    let month = if january {
        month.wrapping_add(9)
    } else {
        month.wrapping_sub(3)
    };
    let of_cycle = days_of_years(year.rem_euclid(400))
        .wrapping_add(days_before_month(month))
        .wrapping_add(day.wrapping_sub(1));
    let cycles = year.div_euclid(400).wrapping_mul(CYCLE_DAYS);
    cycles.wrapping_add(of_cycle).wrapping_sub(EPOCH_DAYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_another_calendar_on_every_day() {
        let mut date = time::Date::from_calendar_date(0, time::Month::January, 1).unwrap();
        let epoch = time::Date::from_calendar_date(1970, time::Month::January, 1).unwrap();
        while date.year() < 9999 {
            let days = (date - epoch).whole_days();
            let expected = Date {
                year: date.year().into(),
                month: date.month().into(),
                day: date.day(),
                weekday: date.weekday().number_from_sunday(),
            };
            assert_eq!(date_of(days), expected);
            assert_eq!(days_of(expected.year, expected.month, expected.day), days);
            date = date.next_day().unwrap();
        }
    }
}
