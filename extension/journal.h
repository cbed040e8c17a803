/*-------------------------------------------------------------------------
 *
 * journal.h
 *		The journal of usage: what was counted, as it is flushed.  It is for the
 *		worker alone, in a transaction with an active snapshot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_JOURNAL_H
#define REGPILOT_JOURNAL_H

#include "columns.h"
#include "usage.h"

/* Deltas as columns, which are the parameters $1 to $8 of statements. */
enum
{
	DELTA_KEY_ID,
	DELTA_ENVIRONMENT,
	DELTA_HOUR,
	DELTA_TOTAL_REQUESTS,
	DELTA_FAILED_REQUESTS,
	DELTA_PROMPT_TOKENS,
	DELTA_COMPLETION_TOKENS,
	DELTA_LAST_USED_AT,
};

#define DELTA_COLUMNS (DELTA_LAST_USED_AT + 1)

extern const ColumnType *const delta_columns[DELTA_COLUMNS];

/* Make the columns of so many deltas, palloc'd. */
extern void delta_arrays(const UsageDelta *deltas, int count, Datum arrays[DELTA_COLUMNS]);

/* Called once, when the worker begins. */
extern void journal_open(void);

/* Write deltas to the journal. */
extern void journal_append(const UsageDeltas *deltas);

/*
 * Take deltas out of the journal, partition by partition in turn, at least one
 * partition and as many as hold "enough" of them, and add them to a list.
 */
extern void journal_take(int enough, UsageDeltas *deltas);

/* Whether there may be anything to take. */
extern bool journal_has_rows(void);

/* Take all that is in the journal now, until journal_round_is_over(). */
extern void journal_begin_round(void);
extern bool journal_round_is_over(void);

/* There is no journal any more. */
extern void journal_forget(void);

#endif /* REGPILOT_JOURNAL_H */
