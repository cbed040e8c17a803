/*-------------------------------------------------------------------------
 *
 * compat.h
 *		The one place that knows of differences between server versions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_COMPAT_H
#define REGPILOT_COMPAT_H

#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "storage/bufmgr.h"

#if PG_VERSION_NUM < 150000
#error "regpilot needs PostgreSQL 15 or later"
#endif

#if PG_VERSION_NUM >= 160000
#include "varatt.h" /* part of postgres.h before */
#endif

#ifndef pg_nodiscard /* minor versions of 15 before it had this */
#define pg_nodiscard __attribute__((warn_unused_result))
#endif

/* Begin an index scan by that many scan keys. */
static inline IndexScanDesc
compat_index_beginscan(Relation table, Relation index, Snapshot snapshot, int keys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, keys, 0);
#else
	return index_beginscan(table, index, snapshot, keys, 0);
#endif
}

/* Pin the block of a table that a shared buffer held once, if it still does. */
pg_nodiscard static inline bool
compat_read_recent_buffer(Relation table, BlockNumber block, Buffer buffer)
{
#if PG_VERSION_NUM >= 160000
	return ReadRecentBuffer(table->rd_locator, MAIN_FORKNUM, block, buffer);
#else
	return ReadRecentBuffer(table->rd_node, MAIN_FORKNUM, block, buffer);
#endif
}

/*
 * Enter a row that was written into indexes of its table: all of them, or for a
 * replaced one "only" those that summarize.
 */
static inline void
compat_index_row(ResultRelInfo *relation, EState *estate, TupleTableSlot *row, bool replaced,
				 bool only)
{
#if PG_VERSION_NUM >= 160000
	list_free(ExecInsertIndexTuples(relation, row, estate, replaced, false, NULL, NIL, only));
#else
	list_free(ExecInsertIndexTuples(relation, row, estate, replaced, false, NULL, NIL));
#endif
	ResetPerTupleExprContext(estate);
}

/* Insert a row as INSERT does, without constraints and triggers. */
static inline void
compat_insert_row(ResultRelInfo *relation, EState *estate, TupleTableSlot *row)
{
	table_tuple_insert(relation->ri_RelationDesc, row, GetCurrentCommandId(true), 0, NULL);
	compat_index_row(relation, estate, row, false, false);
}

/*
 * Replace a row as UPDATE does, without constraints and triggers.  Waits for
 * whoever has locked the row.  Anything but TM_Ok says why it was not replaced.
 */
pg_nodiscard static inline TM_Result
compat_update_row(ResultRelInfo *relation, EState *estate, ItemPointer tid, TupleTableSlot *row,
				  Snapshot snapshot)
{
	TM_FailureData failure;
	LockTupleMode mode;
	TM_Result result;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes indexes;
#else
	bool indexes;
#endif

	result = table_tuple_update(relation->ri_RelationDesc, tid, row, GetCurrentCommandId(true),
								snapshot, InvalidSnapshot, true, &failure, &mode, &indexes);
	if (result == TM_Ok && indexes)
	{
#if PG_VERSION_NUM >= 160000
		compat_index_row(relation, estate, row, true, indexes == TU_Summarizing);
#else
		compat_index_row(relation, estate, row, true, false);
#endif
	}
	return result;
}

#endif /* REGPILOT_COMPAT_H */
