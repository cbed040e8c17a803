-- Keys without a limit: the texts '1' to :keys. As in a restore, no audit is written.
SET row_security = off;
SELECT set_config('search_path', '', false);
SELECT regpilot.create_project('bench', 'enterprise');
INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
SELECT p.id, 'key ' || i, 'sk_...', sha256(i::text::bytea), '{gateway:read,gateway:write}'
FROM regpilot.project p, generate_series(1, :keys) i WHERE p.name = 'bench';
RESET search_path;
RESET row_security;
