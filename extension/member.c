/*-------------------------------------------------------------------------
 *
 * member.c
 *		Which projects a role is a member of.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

PG_FUNCTION_INFO_V1(regpilot_my_projects);

/* Columns of project_member, as the install script makes them. */
enum
{
	Anum_project_member_project_id = 1,
	Anum_project_member_role,
};

/*
 * Whether the current role has the privileges of another, which need not exist:
 * a membership may outlive its role, or come in a dump of another server.
 */
static bool
has_privileges_of(const char *role_name)
{
	Oid role = get_role_oid(role_name, true);

	return OidIsValid(role) && has_privs_of_role(GetUserId(), role);
}

/*
 * The projects of which the current role, or one whose privileges it has, is a
 * member: uuid[].  Policies call this, so it reads past the policy of the table,
 * and tells nothing of other roles.
 */
Datum
regpilot_my_projects(PG_FUNCTION_ARGS)
{
	Oid schema = get_namespace_oid("regpilot", false);
	Relation table = table_open(get_relname_relid("project_member", schema), AccessShareLock);
	TupleTableSlot *row = table_slot_create(table, NULL);
	TableScanDesc scan = table_beginscan(table, GetActiveSnapshot(), 0, NULL);
	ArrayBuildState *projects = initArrayResult(UUIDOID, CurrentMemoryContext, false);

	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		bool isnull;
		Datum role = slot_getattr(row, Anum_project_member_role, &isnull);

		if (has_privileges_of(NameStr(*DatumGetName(role))))
			accumArrayResult(projects, slot_getattr(row, Anum_project_member_project_id, &isnull),
							 false, UUIDOID, CurrentMemoryContext);
	}

	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	table_close(table, AccessShareLock);
	PG_RETURN_DATUM(makeArrayResult(projects, CurrentMemoryContext));
}
