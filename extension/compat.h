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

/*
 * Replace a row and enter the new one into the indexes that need it, as UPDATE
 * does.  Waits for whoever has locked the row.  Anything but TM_Ok says why it
 * was not replaced.
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
		list_free(ExecInsertIndexTuples(relation, row, estate, true, false, NULL, NIL,
										indexes == TU_Summarizing));
#else
		list_free(ExecInsertIndexTuples(relation, row, estate, true, false, NULL, NIL));
#endif
		ResetPerTupleExprContext(estate);
	}
	return result;
}

#endif /* REGPILOT_COMPAT_H */
