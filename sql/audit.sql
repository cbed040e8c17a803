--
-- Who changed what: written down by triggers, and for good.
--

-- The entries since the last look, without what differs from run to run.
CREATE TABLE looked AS SELECT coalesce(max(id), 0) AS id FROM regpilot.audit_log;
CREATE FUNCTION plain(value text) RETURNS text LANGUAGE sql AS $$
	SELECT regexp_replace(regexp_replace(regexp_replace(replace(value, '"' || session_user || '"', '"session user"'),
		'[0-9a-f]{8}-[0-9a-f-]{27}', 'uuid', 'g'),
		'\d{4}-\d\d-\d\d[ T][0-9:.]+[+-][0-9:]+', 'time', 'g'),
		'\.\.\.[0-9a-z]{4}', '...', 'g')
$$;
CREATE FUNCTION look(OUT role text, OUT action text, OUT table_name text, OUT project bool, OUT key bool, OUT object text,
	OUT old text, OUT new text) RETURNS SETOF record
LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT CASE WHEN l.role = session_user THEN 'session user' ELSE l.role END, l.action, l.table_name,
			l.project_id IS NOT NULL, l.key_id IS NOT NULL, plain(l.object), plain(l.old::text), plain(l.new::text)
		FROM regpilot.audit_log l WHERE l.id > (SELECT id FROM looked) ORDER BY l.id;
	UPDATE looked SET id = (SELECT coalesce(max(l.id), 0) FROM regpilot.audit_log l);
END
$$;

-- by the functions
SELECT regpilot.create_project('audit test') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'audited', 'prod', '{gateway:read}') \gset
SELECT regpilot.disable_key(:'key_id'), regpilot.disable_key(:'key_id'), regpilot.enable_key(:'key_id');
SELECT regpilot.revoke_key(:'key_id', 'found in a log'), regpilot.revoke_key(:'key_id', 'again');
SELECT * FROM look() \gx
SELECT count(*) FILTER (WHERE project_id = :'project') AS of_project, count(*) FILTER (WHERE key_id = :'key_id') AS of_key,
	count(*) FILTER (WHERE object = :'key_id') AS object, bool_and(session_role = session_user) AS session_role,
	bool_and(at BETWEEN now() - interval '1 minute' AND clock_timestamp()) AS at
FROM regpilot.audit_log WHERE project_id = :'project';

-- by direct SQL, in whatever way
INSERT INTO regpilot.plan VALUES ('audited', 7);
INSERT INTO regpilot.plan VALUES ('audited', 8) ON CONFLICT (name) DO UPDATE SET requests_per_minute = excluded.requests_per_minute;
INSERT INTO regpilot.upstream VALUES ('audited', 'https://audited.example/v1', 'AUDITED_KEY');
COPY regpilot.route (alias, upstream, model) FROM stdin;
audited	audited	big-1
\.
MERGE INTO regpilot.project p USING regpilot.plan pl ON pl.name = 'audited' AND p.id = :'project'
	WHEN MATCHED THEN UPDATE SET plan = 'audited';
INSERT INTO regpilot.project_member VALUES (:'project', 'somebody');
UPDATE regpilot.upstream SET connect_timeout_ms = 300, timeout_ms = 60000 WHERE name = 'audited';
SELECT role, action, table_name, project, key, CASE WHEN table_name <> 'route' THEN object END AS object, old,
	regexp_replace(new, '"id": \d+, ', '') AS new
FROM look();

-- what a foreign key does: a plan renamed, an upstream and a project deleted
UPDATE regpilot.plan SET name = 'renamed' WHERE name = 'audited';
DELETE FROM regpilot.upstream WHERE name = 'audited';
SELECT role, action, table_name, CASE WHEN table_name <> 'route' THEN object END AS object,
	regexp_replace(old, '"id": \d+, ', '') AS old, new FROM look();
UPDATE regpilot.project SET plan = 'free' WHERE id = :'project';
DELETE FROM regpilot.plan WHERE name = 'renamed';
SELECT count(*) FROM look();
SET ROLE regpilot_admin;
DELETE FROM regpilot.project WHERE id = :'project';
RESET ROLE;
SELECT role, action, table_name, project, key, object, new FROM look();
SELECT table_name, project_id = :'project' AS project_id, old - '{id,hint,created_at,created_by,project_id,revoked_at}'::text[] AS old
FROM regpilot.audit_log WHERE project_id = :'project' AND action = 'delete' ORDER BY id;

-- an UPDATE that changes nothing is none; one that changes a NULL is
SELECT regpilot.create_project('audit test') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'audited') \gset
SELECT count(*) FROM look();
UPDATE regpilot.api_key SET name = name, permissions = permissions || '{}', requests_per_minute = NULL, digest = digest;
UPDATE regpilot.plan SET requests_per_minute = requests_per_minute;
SELECT * FROM look();
UPDATE regpilot.api_key SET requests_per_minute = 5, environment = 'ci' WHERE id = :'key_id';
UPDATE regpilot.api_key SET requests_per_minute = NULL WHERE id = :'key_id';
SELECT action, old, new FROM look();

-- a digest is never shown; that it was changed is
SELECT digest FROM regpilot.api_key WHERE id = :'key_id' \gset
UPDATE regpilot.api_key SET digest = sha256('another'), active = false WHERE id = :'key_id';
SELECT action, old, new FROM look();
SELECT count(*) FROM regpilot.audit_log l
WHERE strpos(l::text, ltrim(:'digest', '\x')) > 0 OR strpos(l::text, encode(sha256('another'), 'hex')) > 0 OR strpos(l::text, :'key') > 0;

-- what is rolled back was not done
BEGIN;
UPDATE regpilot.project SET name = 'never' WHERE id = :'project';
SELECT code FROM error_of('UPDATE regpilot.project SET name = repeat(''x'', 201)');
SELECT count(*) FROM look();
ROLLBACK;
SELECT count(*) FROM regpilot.audit_log WHERE new ->> 'name' = 'never';
-- and an error in the midst of it leaves the role as it was
ALTER TABLE regpilot.audit_log ADD CONSTRAINT full_disk CHECK (new ->> 'name' IS DISTINCT FROM 'unlucky');
SET ROLE regpilot_admin;
SELECT code, message FROM error_of($$UPDATE regpilot.project SET name = 'unlucky'$$);
SELECT current_user, session_user <> current_user AS set;
RESET ROLE;
ALTER TABLE regpilot.audit_log DROP CONSTRAINT full_disk;
SELECT name FROM regpilot.project;

-- the role is the one that acts: who was SET, or the owner of a SECURITY DEFINER function, unless that owns the table
UPDATE looked SET id = (SELECT max(id) FROM regpilot.audit_log);
CREATE ROLE regress_regpilot_ann IN ROLE regpilot_admin;
CREATE ROLE regress_regpilot_bob;
CREATE FUNCTION rename(name text) RETURNS void SECURITY DEFINER LANGUAGE sql AS
	'UPDATE regpilot.project SET name = $1 WHERE name = ''audit test'' OR name LIKE ''by %''';
ALTER FUNCTION rename OWNER TO regress_regpilot_ann;
SET ROLE regress_regpilot_bob;
SELECT rename('by a function');
SET ROLE regress_regpilot_ann;
UPDATE regpilot.project SET name = 'by ann';
RESET ROLE;
UPDATE regpilot.project SET name = 'audit test';
SELECT role, new FROM look();

-- session_replication_role is no way around it, nor are the settings of a restore, but for a superuser
SET session_replication_role = replica;
UPDATE regpilot.project SET name = 'by replication';
RESET session_replication_role;
SET row_security = off;
UPDATE regpilot.project SET name = 'without policies';
SELECT regpilot.restoring();
SELECT pg_catalog.set_config('search_path', '', false);
UPDATE regpilot.project SET name = 'restored';
SELECT regpilot.restoring();
SET ROLE regress_regpilot_ann;
SELECT regpilot.restoring();
UPDATE regpilot.plan SET requests_per_minute = 11 WHERE name = 'free';
UPDATE regpilot.project SET name = 'by ann';
-- a restore takes rows in any order, and the next statement is as ever
RESET ROLE;
BEGIN;
INSERT INTO regpilot.project_member VALUES ('00000000-0000-0000-0000-000000000000', 'early');
SHOW session_replication_role;
SAVEPOINT s;
INSERT INTO regpilot.project_member VALUES ('00000000-0000-0000-0000-000000000000', 'early');
ROLLBACK TO s;
SHOW session_replication_role;
COMMIT;
DELETE FROM regpilot.project_member WHERE role = 'early';
RESET row_security;
INSERT INTO regpilot.project_member VALUES ('00000000-0000-0000-0000-000000000000', 'early');
RESET search_path;
-- nor is a foreign key, or a function, that acts as a superuser, or that a superuser calls
CREATE FUNCTION rename_as_superuser() RETURNS void SECURITY DEFINER LANGUAGE sql AS
	'UPDATE regpilot.project SET name = ''by a superuser''''s function''';
CREATE FUNCTION raise_as_ann() RETURNS void SECURITY DEFINER LANGUAGE sql AS
	'UPDATE regpilot.plan SET requests_per_minute = 12 WHERE name = ''free''';
ALTER FUNCTION raise_as_ann OWNER TO regress_regpilot_ann;
CREATE FUNCTION restoring_as_superuser() RETURNS bool SECURITY DEFINER LANGUAGE sql AS 'SELECT regpilot.restoring()';
SET row_security = off;
SELECT pg_catalog.set_config('search_path', '', false);
SELECT public.raise_as_ann();
SET ROLE regress_regpilot_bob;
SELECT public.rename_as_superuser(), public.restoring_as_superuser();
SET ROLE regress_regpilot_ann;
UPDATE regpilot.plan SET name = 'gratis' WHERE name = 'free';
RESET ROLE;
RESET search_path;
RESET row_security;
SELECT role, table_name, old, new FROM look();
UPDATE regpilot.plan SET name = 'free', requests_per_minute = 10 WHERE name = 'gratis';
SELECT count(*) FROM look();

-- append-only, to everyone
SELECT * FROM error_of('UPDATE regpilot.audit_log SET role = ''nobody''');
SELECT code FROM error_of('DELETE FROM regpilot.audit_log');
SELECT code FROM error_of('DELETE FROM regpilot.audit_log WHERE false');
SELECT code FROM error_of('TRUNCATE regpilot.audit_log');
SELECT code FROM error_of('MERGE INTO regpilot.audit_log USING (VALUES (1)) v ON true WHEN MATCHED THEN DELETE');
SELECT code FROM error_of('INSERT INTO regpilot.audit_log (id, session_role, role, action, table_name) OVERRIDING SYSTEM VALUE'
	' SELECT min(id), '''', '''', '''', '''' FROM regpilot.audit_log ON CONFLICT (id) DO UPDATE SET role = ''''');
SET session_replication_role = replica;
SELECT code FROM error_of('DELETE FROM regpilot.audit_log');
RESET session_replication_role;
SET ROLE regress_regpilot_ann;
SELECT statement, code FROM unnest(ARRAY['UPDATE regpilot.audit_log SET role = ''nobody''', 'DELETE FROM regpilot.audit_log',
	'TRUNCATE regpilot.audit_log', 'INSERT INTO regpilot.audit_log (role) VALUES (''x'')', 'SELECT nextval(''regpilot.audit_log_id_seq'')',
	'ALTER TABLE regpilot.audit_log DISABLE TRIGGER ALL', 'ALTER TABLE regpilot.project DISABLE TRIGGER audit',
	'DROP TRIGGER audit ON regpilot.api_key', 'SET session_replication_role = replica', 'TRUNCATE regpilot.route']) statement,
	LATERAL error_of(statement);
-- nor can entries be made up
CREATE TEMP TABLE project (id uuid);
CREATE TRIGGER audit AFTER INSERT ON project FOR EACH ROW EXECUTE FUNCTION regpilot.audit('id');
RESET ROLE;
SELECT code FROM error_of('SELECT regpilot.audit()');

-- TRUNCATE, which only the owner may
TRUNCATE regpilot.project CASCADE;
SELECT role, action, table_name, object, old, new FROM look() ORDER BY table_name;

DROP FUNCTION rename, rename_as_superuser, raise_as_ann, restoring_as_superuser, look, plain;
DROP TABLE looked, project;
DROP ROLE regress_regpilot_ann, regress_regpilot_bob;
