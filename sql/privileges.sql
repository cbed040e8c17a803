--
-- What the roles are for. Every privilege of each of them is in t/170_roles.pl.
--
SELECT regpilot.create_project('privileges test') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'k') \gset
-- the responder checks keys and reads routes, and that is all
SET ROLE regpilot_responder;
SELECT verdict FROM regpilot.authorize(:'key');
SELECT count(*) FROM regpilot.authorize_many('{1}', ARRAY[:'key']::regpilot.secret[], '{NULL}', '{NULL}');
SELECT count(*) FROM regpilot.route JOIN regpilot.upstream ON name = upstream;
SELECT count(*) FROM regpilot.api_key;
SELECT count(*) FROM regpilot.key_overview;
UPDATE regpilot.route SET priority = 1;
SELECT regpilot.create_project('x');
SELECT regpilot.flush_usage();
CREATE TABLE secrets (s regpilot.secret);
RESET ROLE;

-- a reader looks at the projects that it is a member of, and changes nothing
SET ROLE regpilot_reader;
SELECT count(*) FROM regpilot.key_overview;
RESET ROLE;
INSERT INTO regpilot.project_member VALUES (:'project', 'regpilot_reader');
SET ROLE regpilot_reader;
SELECT count(*) FROM regpilot.key_overview;
SELECT digest FROM regpilot.api_key;
SELECT verdict FROM regpilot.authorize(:'key');
SELECT regpilot.revoke_key(:'key_id');
RESET ROLE;

-- an admin does all but read digests and write usage
SET ROLE regpilot_admin;
SELECT regpilot.create_project('admin''s') AS project2 \gset
SELECT key AS key2, key_id AS id2 FROM regpilot.create_key(:'project2', 'k') \gset
SELECT verdict FROM regpilot.authorize(:'key2');
SELECT created_by = session_user AS created_by FROM regpilot.api_key WHERE id = :'id2';
SELECT regpilot.disable_key(:'id2'), regpilot.enable_key(:'id2'), regpilot.revoke_key(:'id2');
INSERT INTO regpilot.plan VALUES ('custom', 7);
INSERT INTO regpilot.upstream VALUES ('provider', 'https://provider.example/v1', 'PROVIDER_KEY');
INSERT INTO regpilot.route (alias, upstream, model) VALUES ('big', 'provider', 'big-1');
SELECT regpilot.flush_usage() >= 0;
SELECT digest FROM regpilot.api_key;
UPDATE regpilot.key_usage SET total_requests = 0;
DELETE FROM regpilot.project WHERE id = :'project2';
DELETE FROM regpilot.upstream WHERE name = 'provider';
DELETE FROM regpilot.plan WHERE name = 'custom';
RESET ROLE;
SELECT count(*) FROM regpilot.route;

-- tables refuse what the functions refuse
INSERT INTO regpilot.upstream VALUES ('bad', 'ftp://x', NULL);
INSERT INTO regpilot.upstream VALUES ('bad', 'https://x', 'sk-a credential by mistake');
INSERT INTO regpilot.upstream (name, base_url, connect_timeout_ms) VALUES ('bad', 'https://x', 0);
INSERT INTO regpilot.upstream (name, base_url, timeout_ms) VALUES ('bad', 'https://x', 3600001);
INSERT INTO regpilot.route (quality, alias, upstream, model) VALUES ('cheap', 'both', 'builtin', 'echo');
INSERT INTO regpilot.route (quality, upstream) VALUES ('cheap', 'builtin');
INSERT INTO regpilot.plan VALUES ('zero', 0);

DELETE FROM regpilot.project;
