--
-- Project isolation: who is a member of which project, and sees nothing else.
--
CREATE ROLE regress_regpilot_ann IN ROLE regpilot_reader;	-- of one project
CREATE ROLE regress_regpilot_team;
CREATE ROLE regress_regpilot_bob IN ROLE regpilot_reader, regress_regpilot_team;	-- of two, of one of them through the team
CREATE ROLE regress_regpilot_cyd NOINHERIT IN ROLE regress_regpilot_team;	-- in the team, but without its privileges
CREATE ROLE regress_regpilot_dan IN ROLE regpilot_admin;
GRANT USAGE ON SCHEMA regpilot TO regress_regpilot_cyd, regress_regpilot_team;
GRANT SELECT ON regpilot.project TO regress_regpilot_cyd, regress_regpilot_team;
GRANT EXECUTE ON FUNCTION regpilot.my_projects() TO regress_regpilot_cyd, regress_regpilot_team;

SELECT regpilot.create_project('one') AS one, regpilot.create_project('two', 'startup') AS two,
	regpilot.create_project('three', 'enterprise') AS three \gset
SELECT key_id AS key1, key FROM regpilot.create_key(:'one', 'key of one') \gset
SELECT key_id AS key2 FROM regpilot.create_key(:'two', 'key of two') \gset
SELECT key_id AS key3 FROM regpilot.create_key(:'three', 'key of three') \gset
SELECT key_id AS old FROM regpilot.create_key(:'two', 'old key of two') \gset
SELECT regpilot.revoke_key(:'old', 'a reason of two');
INSERT INTO regpilot.key_usage
SELECT id, e, 10, 1, 100, 1000, '2001-01-01 00:00+00' FROM regpilot.api_key, unnest('{ci,prod}'::text[]) e;
INSERT INTO regpilot.project_member VALUES (:'one', 'regress_regpilot_ann'), (:'one', 'regress_regpilot_team'),
	(:'two', 'regress_regpilot_bob'), (:'three', 'no such role'), (:'three', 'regress_regpilot_cyd');

-- what each of them sees of every table and view, by one prepared statement
PREPARE seen AS
SELECT (SELECT string_agg(name, ',' ORDER BY name) FROM regpilot.project) AS project,
	(SELECT string_agg(role, ',' ORDER BY role) FROM regpilot.project_member) AS project_member,
	(SELECT string_agg(name, ',' ORDER BY name) FROM regpilot.api_key) AS api_key,
	(SELECT count(*) FROM regpilot.key_usage) AS key_usage,
	(SELECT string_agg(DISTINCT coalesce(new ->> 'name', new ->> 'revoke_reason', new ->> 'role'), ',')
		FROM regpilot.audit_log WHERE project_id IN (:'one', :'two', :'three')) AS audit_log,
	(SELECT count(*) > 0 FROM regpilot.audit_log WHERE project_id IS NULL) AS audit_log_of_no_project,
	(SELECT string_agg(name || ' ' || project || ' ' || total_requests, ',' ORDER BY name)
		FROM regpilot.key_overview) AS key_overview,
	(SELECT string_agg(name || ' ' || total_keys, ',' ORDER BY name) FROM regpilot.project_overview) AS project_overview;
\x
EXECUTE seen;	-- a superuser
SET ROLE regress_regpilot_dan;
EXECUTE seen;
SET ROLE regress_regpilot_ann;
EXECUTE seen;
SET ROLE regress_regpilot_bob;
EXECUTE seen;
SET ROLE regpilot_reader;
EXECUTE seen;
SET ROLE regress_regpilot_ann;
EXECUTE seen;
\x
-- a membership gives nothing to one who is no reader, and no more than its own to one who does not inherit
SET ROLE regress_regpilot_cyd;
SELECT regpilot.my_projects() = ARRAY[:'three']::uuid[] AS own;
SELECT count(*) FROM regpilot.project;
SET ROLE regress_regpilot_team;
SELECT regpilot.my_projects() = ARRAY[:'one']::uuid[] AS own;
SELECT * FROM error_of('SELECT FROM regpilot.api_key');
RESET ROLE;

-- what a project comes to
SET ROLE regress_regpilot_bob;
SELECT name, plan, requests_per_minute, active_keys, total_keys, total_requests, failed_requests, error_rate, prompt_tokens,
	completion_tokens, last_used_at AT TIME ZONE 'UTC' AS last_used_at, members
FROM regpilot.project_overview ORDER BY name \gx
SELECT total_keys, members FROM regpilot.project_overview WHERE project_id = :'one';
SELECT total_keys, members FROM regpilot.project_overview WHERE project_id = :'three';
SET ROLE regress_regpilot_dan;
SELECT regpilot.create_project('four') AS four \gset
SELECT total_keys, active_keys, total_requests, failed_requests, error_rate, prompt_tokens, last_used_at, members
FROM regpilot.project_overview WHERE project_id = :'four';
DELETE FROM regpilot.project WHERE id = :'four';
RESET ROLE;
SELECT attname, format_type(atttypid, atttypmod)
FROM pg_attribute WHERE attrelid = 'regpilot.project_overview'::regclass AND attnum > 0 ORDER BY attnum;

-- of a key all is seen but its digest
SET ROLE regress_regpilot_bob;
SELECT name, revoke_reason FROM regpilot.api_key ORDER BY name;
SELECT digest FROM regpilot.api_key;
SELECT name FROM regpilot.api_key ORDER BY digest;
SELECT name FROM regpilot.api_key WHERE digest = sha256('guess');
SELECT * FROM regpilot.api_key;
SELECT k FROM regpilot.api_key k;
SELECT count(*) FROM regpilot.audit_log WHERE new ->> 'digest' <> '<redacted>';

-- others are not seen by their ids, nor by joins, by functions and operators that tell or fail, or in statistics
SET ROLE regress_regpilot_ann;
SELECT count(*) FROM regpilot.project WHERE id = :'two';
SELECT count(*) FROM regpilot.key_usage WHERE key_id = :'key2';
SELECT count(*) FROM regpilot.audit_log WHERE key_id IN (:'key2', :'old') OR project_id = :'two' OR object = :'key2';
SELECT count(*) FROM regpilot.api_key a LEFT JOIN regpilot.api_key b ON a.id <> b.id;
CREATE FUNCTION pg_temp.tell(text) RETURNS bool LANGUAGE plpgsql COST 0.000001 AS $$
BEGIN
	RAISE NOTICE 'seen: %', $1;
	RETURN true;
END
$$;
SELECT count(*) FROM regpilot.project WHERE pg_temp.tell(name);
SELECT count(*) FROM regpilot.api_key WHERE pg_temp.tell(name);
SELECT count(*) FROM regpilot.key_overview WHERE pg_temp.tell(name) AND key_id = ANY (ARRAY[:'key1', :'key2']::uuid[]);
SELECT count(*) FROM regpilot.key_usage WHERE pg_temp.tell(environment);
SELECT count(*) FROM regpilot.project_overview WHERE pg_temp.tell(name);
SELECT count(*) FROM regpilot.audit_log WHERE pg_temp.tell(new ->> 'role') AND table_name = 'project_member';
SELECT count(*) FROM regpilot.project_member WHERE pg_temp.tell(role);
SELECT count(*) FROM regpilot.project WHERE 1 / (length(name) - length('three')) < 0;
SELECT count(*) FROM regpilot.api_key WHERE CASE WHEN name = 'key of one' THEN true ELSE name::int > 0 END;
RESET ROLE;
ANALYZE regpilot.project, regpilot.api_key, regpilot.key_usage, regpilot.audit_log, regpilot.project_member;
SET ROLE regress_regpilot_ann;
SELECT tablename, attname FROM pg_stats
WHERE schemaname = 'regpilot' AND tablename IN ('project', 'api_key', 'key_usage', 'audit_log', 'project_member');
SET row_security = off;
SELECT count(*) FROM regpilot.project;
SELECT count(*) FROM regpilot.plan;
RESET row_security;

-- nothing is changed
RESET ROLE;
CREATE TEMP TABLE attempt AS SELECT unnest(ARRAY['UPDATE regpilot.project SET plan = ''enterprise''', 'DELETE FROM regpilot.api_key',
	'INSERT INTO regpilot.project_member SELECT id, current_user FROM regpilot.project', 'DELETE FROM regpilot.project_member',
	'SELECT FROM regpilot.project FOR UPDATE', 'SELECT regpilot.create_project(''mine'')', 'SELECT regpilot.flush_usage()']) AS statement;
GRANT SELECT ON attempt TO regress_regpilot_ann;
SET ROLE regress_regpilot_ann;
SELECT statement, code FROM attempt, LATERAL error_of(statement);

-- a membership ends with its row, and with the project
SET ROLE regress_regpilot_dan;
DELETE FROM regpilot.project_member WHERE role = 'regress_regpilot_ann';
INSERT INTO regpilot.project_member VALUES (:'two', 'regress_regpilot_ann');
SELECT code FROM error_of($$INSERT INTO regpilot.project_member VALUES ('00000000-0000-0000-0000-000000000000', 'regress_regpilot_ann')$$);
DELETE FROM regpilot.project WHERE id = :'one';
SET ROLE regress_regpilot_ann;
SELECT name FROM regpilot.project;
SELECT action, table_name FROM regpilot.audit_log WHERE project_id = :'one';
SET ROLE regress_regpilot_bob;
SELECT name FROM regpilot.project;

-- a query asks for the projects once, and finds their rows by an index
RESET ROLE;
CREATE FUNCTION pg_temp.scan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query
	LOOP
		IF line ~ 'Scan|Cond|Filter' THEN
			RETURN NEXT regexp_replace(line, '\$\d+|\(InitPlan \d+\)\.col1', 'once');
		END IF;
	END LOOP;
END
$$;
BEGIN;
INSERT INTO regpilot.project (name) SELECT 'many ' || i FROM generate_series(1, 1000) i;
INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
SELECT p.id, 'k', '...', sha256((p.name || '/' || i)::bytea), '{gateway:write}' FROM regpilot.project p, generate_series(1, 10) i
WHERE p.name LIKE 'many%';
ANALYZE regpilot.project, regpilot.api_key;
SET LOCAL ROLE regress_regpilot_ann;
SET LOCAL enable_bitmapscan = off;
SELECT pg_temp.scan_of('SELECT name FROM regpilot.api_key');
SELECT pg_temp.scan_of('SELECT name FROM regpilot.api_key WHERE id = ''00000000-0000-0000-0000-000000000000''');
SET LOCAL ROLE regress_regpilot_dan;
SELECT pg_temp.scan_of('SELECT name FROM regpilot.api_key');
ROLLBACK;

DEALLOCATE seen;
DROP FUNCTION pg_temp.tell(text), pg_temp.scan_of(text);
DROP TABLE attempt;
DELETE FROM regpilot.project;
REVOKE ALL ON FUNCTION regpilot.my_projects() FROM regress_regpilot_cyd, regress_regpilot_team;
REVOKE ALL ON regpilot.project FROM regress_regpilot_cyd, regress_regpilot_team;
REVOKE ALL ON SCHEMA regpilot FROM regress_regpilot_cyd, regress_regpilot_team;
DROP ROLE regress_regpilot_ann, regress_regpilot_bob, regress_regpilot_cyd, regress_regpilot_dan, regress_regpilot_team;
