--
-- The request log. Its upkeep is called as of 2031, so that partitions of the
-- present, which the worker may have made, are in nobody's way.
--
SET timezone = 'UTC';
DELETE FROM regpilot.project;

CREATE VIEW days AS
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds,
	(SELECT string_agg(pg_get_indexdef(indexrelid), ', ') FROM pg_index WHERE indrelid = c.oid) AS indexes
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
WHERE inhparent = 'regpilot.request_log'::regclass AND c.relname LIKE 'request\_log\_2031%'
ORDER BY c.relname;

-- where there are no keys there is nothing to log
SELECT regpilot.maintain_request_log('2031-05-05 23:59:59.999999+00');
SELECT relname FROM days;

SELECT regpilot.create_project('log test', 'enterprise') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'logged', 'staging') \gset

--
-- Writing
--
-- what is absurd is bounded, or left out, and never hinders the rest
SELECT regpilot.record_many(array_fill(:'key_id'::uuid, '{9}') || ARRAY['00000000-0000-0000-0000-000000000000', NULL]::uuid[],
	'{prod,laptop,ci,NULL,dev,ci,ci,ci,ci,ci,ci}', '{200,499,599,100,200,99,600,-2147483648,NULL,200,200}',
	'{12,-1,NULL,2147483647,5,1,1,1,1,1,1}',
	ARRAY['gpt-4o', NULL, repeat(chr(233), 300), E'\x1b[31m', '', 'x', 'x', 'x', 'x', 'x', 'x'],
	'{3,NULL,-5,9223372036854775807,1,1,1,1,1,1,1}', '{10,20,NULL,-1,1,1,1,1,1,1,1}', '{3,NULL,7,-1,6,1,1,1,1,1,1}');
SELECT project_id = :'project' AS project, key_id = :'key_id' AS key, at BETWEEN now() - interval '1 minute' AND clock_timestamp() AS at,
	environment, status, latency_ms, first_byte_ms, char_length(model) AS length, replace(left(model, 12), chr(233), 'e') AS model, prompt_tokens, completion_tokens
FROM regpilot.request_log WHERE project_id = :'project' ORDER BY id;
SELECT count(DISTINCT at) AS times, count(DISTINCT id) AS ids FROM regpilot.request_log WHERE project_id = :'project';

-- all that a row says
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'regpilot.request_log'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname;

-- one more request, and how many are in the log and in the counters
CREATE FUNCTION log_one(key_id uuid, status int DEFAULT 500) RETURNS int LANGUAGE sql
	RETURN regpilot.record_many(ARRAY[key_id], '{dev}', ARRAY[status], '{1}', '{x}', '{1}', '{1}');
CREATE FUNCTION rows_and_failures(key_id uuid) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM regpilot.flush_usage();
	RETURN concat_ws(' ', (SELECT count(*) FROM regpilot.request_log l WHERE l.key_id = $1 AND l.environment = 'dev'),
		(SELECT sum(failed_requests) FROM regpilot.key_usage u WHERE u.key_id = $1 AND u.environment = 'dev'));
END
$$;
SELECT log_one(:'key_id');
SELECT rows_and_failures(:'key_id');

-- a read-only transaction, and a standby, count but do not log
BEGIN READ ONLY;
SELECT log_one(:'key_id');
COMMIT;
SELECT rows_and_failures(:'key_id');

-- either both or neither: a ROLLBACK takes back what it is of
BEGIN;
SELECT log_one(:'key_id');
ROLLBACK;
SELECT rows_and_failures(:'key_id');
BEGIN;
SELECT log_one(:'key_id');
SAVEPOINT one;
SELECT log_one(:'key_id');
SAVEPOINT two;
SELECT log_one(:'key_id');
RELEASE two;
ROLLBACK TO one;
SAVEPOINT three;
SELECT log_one(:'key_id');
SAVEPOINT four;
SELECT log_one(:'key_id');
ROLLBACK TO four;
RELEASE three;
SELECT log_one(:'key_id');
COMMIT;
SELECT rows_and_failures(:'key_id');
BEGIN;
SELECT log_one(:'key_id');
PREPARE TRANSACTION 'outcome';
SELECT rows_and_failures(:'key_id');

-- the same key and environment many times in a call
SELECT regpilot.record_many(array_fill(:'key_id'::uuid, '{3000}'), array_fill('staging'::text, '{3000}'), array_fill(500, '{3000}'),
	array_fill(1, '{3000}'), array_fill('x'::text, '{3000}'), array_fill(2::bigint, '{3000}'), array_fill(3::bigint, '{3000}'));
SELECT regpilot.flush_usage() >= 0;
SELECT failed_requests, prompt_tokens, completion_tokens FROM regpilot.key_usage WHERE key_id = :'key_id' AND environment = 'staging';
SELECT count(*), count(DISTINCT id) AS ids FROM regpilot.request_log WHERE key_id = :'key_id' AND environment = 'staging';

-- the name of a model is stored as it is, whatever the client's encoding
SET client_encoding = 'LATIN1';
SELECT regpilot.record_many(ARRAY[:'key_id']::uuid[], '{ci}', '{201}', '{1}', ARRAY[chr(27169) || U&'\00e9"''\\{,'], '{1}', '{1}');
RESET client_encoding;
SELECT model = chr(27169) || U&'\00e9"''\\{,' AS model FROM regpilot.request_log WHERE key_id = :'key_id' AND status = 201;

-- what cannot be logged is not counted: the second try counts once
ALTER TABLE regpilot.request_log ADD CONSTRAINT no_teapots CHECK (status <> 418);
SELECT code FROM error_of(format('SELECT log_one(%L, 418)', :'key_id'));
SELECT rows_and_failures(:'key_id');
ALTER TABLE regpilot.request_log DROP CONSTRAINT no_teapots;
SELECT log_one(:'key_id', 418);
SELECT rows_and_failures(:'key_id');

-- the table's owner writes, whatever operators the caller's schemas have
CREATE FUNCTION hijack(uuid, uuid) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked by %', current_user; END $$;
CREATE OPERATOR = (FUNCTION = hijack, LEFTARG = uuid, RIGHTARG = uuid);
SET search_path = public, pg_catalog;
SET ROLE regpilot_responder;
SELECT regpilot.record_many(ARRAY[:'key_id']::uuid[], '{dev}', '{500}', '{1}', '{x}', '{1}', '{1}'), current_user;
RESET ROLE;
RESET search_path;
DROP OPERATOR public.= (uuid, uuid);
DROP FUNCTION hijack;
SELECT rows_and_failures(:'key_id');

--
-- Who may do what: an admin and a reader look, and nobody writes.
--
SELECT r.role, p.privilege
FROM unnest('{regpilot_admin,regpilot_responder,regpilot_reader,public}'::text[]) AS r(role),
	unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p(privilege)
WHERE has_table_privilege(r.role, 'regpilot.request_log', p.privilege) ORDER BY 1, 2;
SET ROLE regpilot_admin;
SELECT count(*) FROM regpilot.request_log WHERE environment = 'dev';
INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	VALUES (now(), :'project', :'key_id', 200, 0, 0, 'dev');
UPDATE regpilot.request_log SET status = 200;
DELETE FROM regpilot.request_log;
TRUNCATE regpilot.request_log;
SELECT count(*) FROM regpilot.request_log_default;
SELECT regpilot.maintain_request_log('2040-01-01');
-- a reader, the rows of its projects
SET ROLE regpilot_reader;
SELECT count(*) FROM regpilot.request_log WHERE environment = 'dev';
RESET ROLE;
INSERT INTO regpilot.project_member VALUES (:'project', 'regpilot_reader');
SET ROLE regpilot_reader;
SELECT count(*) FROM regpilot.request_log WHERE environment = 'dev';
SET ROLE regpilot_responder;
SELECT count(*) FROM regpilot.request_log;
RESET ROLE;

--
-- Partitions
--
SELECT regpilot.maintain_request_log('2031-05-05 23:59:59.999999+00');
SELECT * FROM days;
SELECT relname, relacl, relowner = (SELECT relowner FROM pg_class WHERE oid = 'regpilot.request_log'::regclass) AS owner
FROM pg_class WHERE relname = 'request_log_20310505';

-- again: nothing; the next day, in another time zone and date style: one more
SELECT regpilot.maintain_request_log('2031-05-05 00:00:00+00');
SET timezone = 'Asia/Tokyo';
SET datestyle = 'German';
SELECT regpilot.maintain_request_log('2031-05-06 00:00:00+00');
RESET datestyle;
SET timezone = 'UTC';
SELECT count(*) FROM days;
SELECT relname, bounds FROM days WHERE relname = 'request_log_20310513';

-- rows find theirs; a page is read from the index, in its order
CREATE PROCEDURE insert_at(at timestamptz) LANGUAGE sql AS $$
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	SELECT $1, id, id, 200, 0, 0, 'ci' FROM regpilot.project
$$;
CALL insert_at('2031-05-05 23:59:59.999999+00');
CALL insert_at('2031-05-06 00:00:00+00');
CALL insert_at('2031-05-06 00:00:00+00');
CALL insert_at('2031-05-20 12:00:00+00');
SELECT tableoid::regclass, at FROM regpilot.request_log WHERE at >= '2031-01-01' ORDER BY at;
SET enable_seqscan = off;
SET enable_sort = off;
EXPLAIN (COSTS OFF) SELECT * FROM regpilot.request_log
WHERE project_id = '11111111-0000-0000-0000-000000000000' AND at >= '2031-05-06 00:00+00'
	AND at <= '2031-05-06 12:00+00' AND (at, id) < ('2031-05-06 12:00+00', 5)
ORDER BY at DESC, id DESC LIMIT 10;
RESET enable_seqscan;
RESET enable_sort;

-- a day of which there are rows in the default partition gets none of its own
SELECT regpilot.maintain_request_log('2031-05-15');
SELECT relname FROM days WHERE relname >= 'request_log_20310515';

-- what is wholly older than 30 days goes, from the default partition as well
SELECT regpilot.maintain_request_log('2031-06-12 23:59+00');
SELECT min(relname) FROM days;
SELECT regpilot.maintain_request_log('2031-06-13 00:00+00');
SELECT min(relname) FROM days;
SELECT regpilot.maintain_request_log('2031-06-19 23:59+00');
SELECT at FROM regpilot.request_log WHERE at >= '2031-01-01';
SELECT regpilot.maintain_request_log('2031-06-20 00:00+00');
SELECT at FROM regpilot.request_log WHERE at >= '2031-01-01';
SELECT min(relname) FROM days;

-- one that cannot be made, or dropped, does not stop the others
CREATE TABLE regpilot.request_log_20310701 ();
SELECT regpilot.maintain_request_log('2031-06-26');
SELECT relname FROM days WHERE relname >= 'request_log_20310628';
DROP TABLE regpilot.request_log_20310701;
SELECT min(relname) FROM days;
CREATE VIEW dependent AS SELECT * FROM regpilot.request_log_20310612;
SELECT regpilot.maintain_request_log('2031-07-15');
SELECT relname FROM days WHERE relname < 'request_log_20310618';
DROP VIEW dependent;
SELECT regpilot.maintain_request_log('2031-07-15');
SELECT min(relname) FROM days;

-- partitions of somebody's own making, also without bounds
CREATE TABLE month PARTITION OF regpilot.request_log FOR VALUES FROM ('2031-08-01') TO ('2031-09-01');
CREATE TABLE beginning PARTITION OF regpilot.request_log FOR VALUES FROM (MINVALUE) TO ('2001-01-01');
CREATE TABLE ending PARTITION OF regpilot.request_log FOR VALUES FROM ('2032-01-01') TO (MAXVALUE);
SELECT regpilot.maintain_request_log('2031-07-28');
SELECT max(relname) FROM days;
SELECT to_regclass('month'), to_regclass('beginning'), to_regclass('ending');
SELECT regpilot.maintain_request_log('2031-10-01');
SELECT to_regclass('month'), to_regclass('ending');
DROP TABLE ending;

-- without the default partition
ALTER TABLE regpilot.request_log DETACH PARTITION regpilot.request_log_default;
SELECT regpilot.maintain_request_log('2031-11-01');
SELECT min(relname), max(relname) FROM days;
ALTER TABLE regpilot.request_log ATTACH PARTITION regpilot.request_log_default DEFAULT;

-- refused
SELECT * FROM error_of($$SELECT regpilot.maintain_request_log('infinity')$$);
BEGIN READ ONLY;
SELECT regpilot.maintain_request_log();
ROLLBACK;
SELECT regpilot.maintain_request_log(NULL) IS NULL;

--
-- The plan that this session has kept outlives what it was made for.
--
SELECT regpilot.maintain_request_log();
SELECT log_one(:'key_id');
SELECT tableoid::regclass <> 'regpilot.request_log_default'::regclass AS in_its_day FROM regpilot.request_log WHERE environment = 'dev' ORDER BY id DESC LIMIT 1;
SELECT regpilot.maintain_request_log('2032-01-01');
SELECT log_one(:'key_id');
SELECT tableoid::regclass FROM regpilot.request_log WHERE key_id = :'key_id';
ALTER TABLE regpilot.request_log ADD COLUMN extra text DEFAULT 'x';
SELECT log_one(:'key_id');
ALTER TABLE regpilot.request_log DROP COLUMN extra;
SELECT log_one(:'key_id');
SELECT count(*) FROM regpilot.request_log WHERE key_id = :'key_id';

DROP VIEW days;
DROP FUNCTION log_one, rows_and_failures;
DROP EXTENSION regpilot;
SELECT relname FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace;
CREATE EXTENSION regpilot;
SELECT key_id FROM regpilot.create_key(regpilot.create_project('log test'), 'k') \gset
SELECT regpilot.record_many(ARRAY[:'key_id']::uuid[], '{dev}', '{500}', '{1}', '{x}', '{1}', '{1}');
SELECT count(*) FROM regpilot.request_log WHERE key_id = :'key_id';

-- a project that is deleted leaves its rows until their time is over
DELETE FROM regpilot.project;
SELECT count(*) FROM regpilot.request_log WHERE key_id = :'key_id';
DROP PROCEDURE insert_at;
